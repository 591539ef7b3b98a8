"""One exchange of messages: plans go out, answers are taken as they come, until all have answered or time is up."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedft import codec, transport
from fedft.config import Server
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe, State
from fedft.update import Plan

log = logging.getLogger(__name__)

POLL_S = 0.05
Accept = Callable[[str, bytes], None]
Observer = Callable[[str, Mapping[str, Any]], None]


@dataclass
class Traffic:
    """What exchanges cost: bytes by client each way, and the refused as {client, code, reason}."""

    up: dict[str, int] = field(default_factory=dict)
    down: dict[str, int] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Exchange:
    """Talks to the clients of one run and remembers which version of the state each of them stands at."""

    grid: transport.Grid
    recipe: Recipe
    server: Server
    down_codec: str
    max_bytes: int
    observe: Observer

    def __post_init__(self) -> None:
        self.nodes: dict[str, int] = {}
        self._have: dict[str, int] = {}
        self._stale: set[str] = set()

    def plan(self, bare: Plan, state: State, client: str) -> Plan:
        """`bare` with what takes this client from the version it stands at to `state`."""
        plan = replace(bare, have=self._have.get(client))
        return replace(plan, tensors=self.recipe.downlink(state, plan.have, plan))

    def ask(
        self,
        kind: transport.Kind,
        plans: Mapping[str, Plan],
        state: State,
        accept: Accept,
        need: int,
        traffic: Traffic,
    ) -> None:
        """Send plans and hand each answer to `accept`, which raises RejectedUpdate for what must not count.

        A client that turns out to stand elsewhere is sent what it lacks, within the same deadline. Time is up at the
        run's `deadline_s`, or `grace_s` after `need` answers were accepted; without a deadline all are waited for.
        """

        def take(client: str, payload: bytes) -> None:
            self._have[client] = state.version
            accept(client, payload)

        def behind(client: str, reason: str) -> bytes | None:
            """What to send again; a client is behind once, or it is refused."""
            if client in corrected:
                return None
            corrected.add(client)
            self._have.pop(client, None)
            if len(reason) < 10 and reason.isdecimal() and int(reason) <= state.version:
                self._have[client] = int(reason)
            return codec.encode_plan(self.plan(plans[client], state, client), self.down_codec)

        corrected: set[str] = set()
        payloads = {c: codec.encode_plan(p, self.down_codec) for c, p in plans.items()}
        self.send(kind, payloads, take, need, traffic, behind)

    def send(
        self,
        kind: transport.Kind,
        payloads: Mapping[str, bytes],
        accept: Accept,
        need: int,
        traffic: Traffic,
        behind: Callable[[str, str], bytes | None] = lambda client, reason: None,
    ) -> None:
        """`ask` for any payloads."""
        waiting: dict[str, str] = {}
        for client, payload in payloads.items():
            self._push(kind, client, payload, waiting, traffic)
        started, accepted, enough_at = time.monotonic(), 0, math.inf
        while waiting:
            enough_at = min(enough_at, time.monotonic()) if accepted >= need else math.inf
            replies = list(self.grid.pull_messages([*waiting, *self._stale]))
            for reply in replies:
                to = reply.metadata.reply_to_message_id
                self._stale.discard(to)  # its exchange is over; what it carries is late whatever it is
                if (client := waiting.pop(to, "")) == "":
                    continue
                try:
                    answer = transport.unpack(reply, self.max_bytes)
                    if isinstance(answer, bytes):
                        traffic.up[client] = traffic.up.get(client, 0) + len(answer)
                        accept(client, answer)
                        accepted += 1
                    elif answer.code == "behind" and (again := behind(client, answer.reason)) is not None:
                        self._push(kind, client, again, waiting, traffic)
                    else:
                        self._refuse(traffic, client, answer.code, answer.reason)
                except RejectedUpdate as e:
                    self._refuse(traffic, client, e.code, str(e))
            now, limit = time.monotonic(), self.server.deadline_s
            if limit is not None and (now > started + limit or now > enough_at + self.server.grace_s):
                break
            if not replies:
                time.sleep(POLL_S)
        for client in waiting.values():
            self._refuse(traffic, client, "deadline", f"no answer within {time.monotonic() - started:.1f} s")
        self._stale = set(waiting)  # answers to older ones are not even fetched

    def _push(
        self, kind: transport.Kind, client: str, payload: bytes, waiting: dict[str, str], traffic: Traffic
    ) -> None:
        (mid,) = self.grid.push_messages([transport.pack(kind, payload, self.nodes[client], kind)])
        waiting[mid] = client
        traffic.down[client] = traffic.down.get(client, 0) + len(payload)

    def _refuse(self, traffic: Traffic, client: str, code: str, reason: str) -> None:
        traffic.refused.append({"client": client, "code": code, "reason": reason})
        log.warning("%s refused: %s: %s", client, code, reason)
        self.observe("refused", traffic.refused[-1])
