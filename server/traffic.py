"""What an exchange of letters costs and who was refused in it, by which clock, and when it ends."""

import hashlib
import logging
import math
from dataclasses import dataclass, field
from typing import Protocol

from fedft.carriers.interface import Refused, Reply
from fedft.errors import RejectedUpdate
from fedft.reports.observers import Observer

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds, of which only differences count; the module `time` is one."""

    def monotonic(self) -> float:
        """Now."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


@dataclass(frozen=True)
class Until:
    """When an exchange ends though not all have answered."""

    need: float = math.inf
    """Accepted answers that are enough, `grace_s` later."""
    grace_s: float = math.inf
    deadline_s: float = math.inf
    """Seconds after which it ends in any case."""


@dataclass
class Traffic:
    """What exchanges cost: bytes by client each way, the refused as {client, code, reason}, and who is to blame."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    needed: dict[str, int] = field(default_factory=dict)
    """Down by client of the letter meant for it, once: what is sent again to one that was killed is left out."""
    refused: list[dict[str, str]] = field(default_factory=list)
    blamed: set[str] = field(default_factory=set)
    """Clients refused for what they certainly sent; not for what the network did or somebody sent in their name, nor
    for a refusal of their own, unless it is for ever that they have forgotten what we said."""

    def refuse(self, reply: Reply, e: RejectedUpdate, observe: Observer, counts: bool = True) -> None:
        """Tell of a refusal; what nothing waited for is told to `observe`, the audit, only, unless it `counts`."""
        client, size, digest = reply.client, reply.size, reply.sha256
        if isinstance(reply.answer, bytes):
            size, digest = len(reply.answer), hashlib.sha256(reply.answer).hexdigest()
        if counts:
            self.refused.append({"client": client, "code": e.code, "reason": str(e)})
            sent = not isinstance(reply.answer, Refused) or e.code in ("behind", "wrong_run")
            if reply.proven and sent and e.code != "deadline":
                self.blamed.add(client)
        log.warning("%s refused: %s: %s", client, e.code, e)
        said = {"client": client, "code": e.code, "reason": str(e), "size": size, "sha256": digest}
        observe("refused", {**said, "proven": reply.proven})
