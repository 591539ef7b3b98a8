"""The turns of a round: in which attempt each client is asked, since when, and what goes on behind the round.

A turn is what one client was asked for. Where rounds wait each ends with its round; for the others see `buffered`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fedft.carriers.interface import Begun, Reply
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.server import buffered
from fedft.server.buffered import OpenTurn
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.traffic import Traffic
from fedft.update import Plan


@dataclass
class Turns:
    """The turns of the round that leads on from `version`. Used once, by one thread."""

    exchange: Exchange
    version: int
    earlier: Mapping[str, OpenTurn]
    """Those that began in earlier rounds and go on, by client."""
    begun: dict[str, Begun] = field(default_factory=dict)
    """When the turn of each client began who was asked."""
    too_old: dict[str, int] = field(default_factory=dict)
    """By client whose turn was given up, how many versions old it was."""
    _states: dict[int, State] = field(default_factory=dict)
    _attempts: int = 0
    """How many were begun, where they are numbered by round."""

    @property
    def run(self) -> Federation:
        """The federation whose turns these are."""
        return self.exchange.federation

    def state(self, version: int) -> State:
        """The state that a turn which goes on began from."""
        return self._states[version]

    def _state_is_lost(self, version: int) -> bool:
        """Whether a state that turns began from is not on the disk any more, as after a damaged file."""
        if version == self.version or version in self._states:
            return False
        if (found := self.run.store.state(version)) is not None:
            self._states[version] = found
        return found is None

    def give_up(self, allowed: Collection[str], traffic: Traffic) -> Mapping[str, OpenTurn]:
        """The turns of earlier rounds that go on: neither too old, nor of clients who are not among the `allowed`.

        Nobody waits for the others any more. What is too old is told as a refusal, and what cannot be sent anew after a
        restart, since its state is lost.
        """
        most = self.run.config.server.max_staleness
        self.too_old = buffered.too_old(self.earlier, self.version, most)
        lost: dict[str, RejectedUpdate] = {}
        for client, age in self.too_old.items():
            lost[client] = RejectedUpdate("too_old", f"{age} versions late, [server] max_staleness is {most}")
        for client in self.earlier.keys() - self.exchange.at_work().keys() - lost.keys():
            if self._state_is_lost(version := self.earlier[client].plan.version):
                lost[client] = RejectedUpdate("state_lost", f"version {version} is not on the server's disk any more")
        for client, e in sorted(lost.items()):
            traffic.refuse(Reply("", client, e, proven=False), e, self.run.observe)
        over = [c for c in self.earlier if c in lost or c not in allowed]
        self.exchange.end(over)
        self.earlier = {c: turn for c, turn in self.earlier.items() if c not in over}
        return self.earlier

    def are_enough(self, admitted: int, asked: int) -> bool:
        """Whether so many updates make the version, though more could come; never where rounds wait."""
        buffer = self.run.config.server.buffer
        return buffer is not None and admitted >= min(buffer, asked)

    def attempt(self, plans: Mapping[str, Plan]) -> dict[str, Plan]:
        """These plans with the number of the attempt in which each client is asked, which no other attempt has.

        Without those of lost states, which cannot be sent again. With virtual devices it goes by the round, so that one
        which is carried out anew after a kill sends letters of the same length. A turn that goes on keeps its own, but
        for one that a deployment has to ask for anew.
        """
        run, now = self.run, self.run.clock.monotonic()
        own = at_work = self.exchange.at_work()
        self._attempts += 1
        if run.virtual and self._attempts == 1:
            own = {c: turn.plan.attempt for c, turn in self.earlier.items()} | own
        plans = {c: p for c, p in plans.items() if c in at_work or not self._state_is_lost(p.version)}
        for c in plans:
            if c not in own:
                self.begun[c] = Begun(now)
            elif c in self.earlier:
                self.begun.setdefault(c, self.earlier[c].begun)
        if run.virtual:
            number = self.version * run.config.server.attempts + self._attempts - 1
        else:
            number = run.store.next_attempt() if plans.keys() - own.keys() else 0
        return {c: replace(p, attempt=own.get(c, number)) for c, p in plans.items()}

    def going_on(self, plans: Mapping[str, Plan], admitted: Collection[str], traffic: Traffic) -> dict[str, OpenTurn]:
        """What goes on behind the round, by client: plans that were neither answered nor refused. None where it waits.

        Args:
            plans: of all who were at work in the round.
            admitted: whose updates count.
            traffic: of the round.
        """
        if self.run.config.server.buffer is None:
            return {}
        at_work, refused = self.exchange.at_work(), {r["client"] for r in traffic.refused}
        over = {*admitted, *(refused - at_work.keys())}
        now = Begun(self.run.clock.monotonic())
        return {
            c: OpenTurn(replace(plans[c], attempt=at_work.get(c, plans[c].attempt)), self.begun.get(c, now))
            for c in self.run.still([*plans])
            if c not in over
        }

    def facts(self, weights: Mapping[str, int], plans: Mapping[str, Plan]) -> dict[str, Any]:
        """What a line of metrics says of a round that does not wait; nothing of one that does."""
        if self.run.config.server.buffer is None:
            return {}
        late = {c: self.version - plans[c].round for c in weights}
        return {"staleness": late, "too_old": [*self.too_old]}
