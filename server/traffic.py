"""The terms of an exchange of letters: its clock, when it ends, what it costs, who was refused and who is to blame."""

import hashlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from fedft.carriers.interface import Refused, Reply
from fedft.errors import RejectedUpdate
from fedft.reports.observers import Observer

log = logging.getLogger(__name__)


class Clock(Protocol):
    """Seconds that pass; the module `time` is a clock, and tests have one that jumps."""

    def monotonic(self) -> float:
        """The time now, in seconds from any moment: only differences count."""

    def sleep(self, seconds: float, /) -> None:
        """Return once so many seconds have passed."""


@dataclass(frozen=True)
class Until:
    """When an exchange ends though not all have answered, so that no client can hold up the others."""

    need: float = math.inf
    """Accepted answers that are enough."""
    grace_s: float = math.inf
    """Seconds for which answers are still taken once there are enough."""
    deadline_s: float = math.inf
    """Seconds after which the exchange ends in any case."""
    before: int = 0
    """Answers that were there before the exchange, of an earlier attempt: `need` are as many more."""

    def to_dict(self) -> dict[str, float | None]:
        """The terms for observers, None for no bound; `need` counts the answers that were there before, too."""
        terms = {"need": self.need + self.before, "deadline_s": self.deadline_s, "grace_s": self.grace_s}
        return {k: x if math.isfinite(x) else None for k, x in terms.items()}


Terms = Callable[[], Until]
"""When an exchange ends, asked anew while it goes on: fewer are enough once somebody who was asked has left."""


@dataclass
class Traffic:
    """What one or several exchanges cost, and who was refused in them."""

    up: dict[str, int] = field(default_factory=dict)
    """Bytes of the answers that came, by client, also of those that were refused then."""
    down: dict[str, int] = field(default_factory=dict)
    """Bytes of letters by client, each time that one is sent."""
    needed: dict[str, int] = field(default_factory=dict)
    """Bytes by client of the letter meant for it, once: what a client that was killed is sent again is left out."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By client, from the first time that the letter meant for it was sent to the answer that was taken, by the run's
    clock."""
    refused: list[dict[str, str]] = field(default_factory=list)
    """{client, code, reason} of each refusal that counts, in the order in which they came."""
    blamed: set[str] = field(default_factory=set)
    """Clients at fault: a message that they certainly sent was refused. Not faults of the network, forgeries, silence,
    or a client's own refusal, except of one that answers `behind` or `wrong_run` more than MAX_HELP times."""

    def refuse(self, reply: Reply, e: RejectedUpdate, observe: Observer, counts: bool = True) -> None:
        """Log a refusal, tell `observe` of it, and note it.

        Args:
            reply: that is refused.
            e: why.
            observe: hears of "refused" with the size and SHA-256 of what came, and whether it is proven to be the
                client's.
            counts: whether the refusal enters `refused` and `blamed`; else nothing waited for the reply, and it is only
                told.
        """
        client, size, digest = reply.client, reply.size, reply.sha256
        if isinstance(reply.answer, bytes):
            size, digest = len(reply.answer), hashlib.sha256(reply.answer).hexdigest()
        if counts:
            self.refused.append({"client": client, "code": e.code, "reason": str(e)})
            sent = not isinstance(reply.answer, Refused) or e.code in ("behind", "wrong_run")
            if reply.proven and sent and e.code != "deadline":
                self.blamed.add(client)
        log.warning("%s refused: %s: %s", client, e.code, e, extra={"site": client})
        said = {"client": client, "code": e.code, "reason": str(e), "size": size, "sha256": digest}
        observe("refused", {**said, "proven": reply.proven})
