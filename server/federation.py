"""What everything in one run shares: how letters travel, the recipe, who takes part, and the plans of a round."""

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from fedft.carriers.interface import SHORT_ANSWER_BYTES, Post
from fedft.config import Local, RunConfig
from fedft.contract import Forecast, Layout, Member, Roster, Seen, State, Work
from fedft.contract.planning import no_forecast
from fedft.errors import ConfigError, OtherVersion, RejectedUpdate
from fedft.recipe import Recipe
from fedft.reports.observers import Observer
from fedft.server import message_sizes, planner_view
from fedft.server.checkpoint import Store
from fedft.server.guard import Guard, Unguarded
from fedft.server.job import told
from fedft.server.membership import Membership, Roll
from fedft.server.steering import Steering
from fedft.server.traffic import Clock, Until
from fedft.training import schedules
from fedft.update import PROFILE, Job, Plan, Scalar
from fedft.wire import messages

if TYPE_CHECKING:
    from fedft.server.private_sum import PrivateSum

log = logging.getLogger(__name__)

LOOK_S = 1.0  # between two looks at who may take part: a roster of thousands costs nothing to speak of
DEADLINE_S = 3600.0  # of a round in a deployment whose run file sets none: it ends whatever the sites do


@dataclass
class Federation:
    """One run's fixed facts and its clients, for the engine, its rounds and its exchanges. Used by one thread."""

    post: Post
    recipe: Recipe
    layout: Layout
    """Of the base model."""
    config: RunConfig
    job: Job
    """What clients are told of the run; its identifier is the run's."""
    store: Store
    observe: Observer = lambda kind, info: None
    """Hears of everything that a person may want to see."""
    clock: Clock = time
    """By which an exchange of letters waits and ends."""
    virtual: bool = False
    """The clock is that of virtual devices: it passes only where an exchange waits, and is durable with the state. A
    round that was interrupted is carried out anew, since nobody wrote down when its answers came."""
    deployed: bool = False
    """Sites come and go: whoever is not there is waited for up to quorum and deadline, and never an error."""
    guard: Guard = field(default_factory=Unguarded)
    """How the updates of a round are summed."""
    fewest: int = 1
    """Answers that a round needs, whatever the quorum: t of a secure sum."""
    spent: Callable[[], float] | None = None
    """Epsilon of the client whose own noise has cost most in this run; None: the clients alone know."""
    caps: Mapping[str, int] = field(default_factory=dict)
    """Most examples that a client may claim, where that is less than `[limits] max_num_examples`."""
    roll: Roll | None = None
    """Who may take part at this moment; None: whoever `enter` names, to the end."""
    steering: Steering | None = None
    """What an operator changes while the run goes on; None: nothing."""
    barred: Collection[str] = ()
    """Clients in quarantine."""
    number: int = 0
    """The round at work, or the next one."""
    membership: Membership = field(default_factory=lambda: Membership(()))
    """The run's members, by place."""
    members: dict[str, Member] = field(default_factory=dict)
    """The members of the round at work, in roster order (bytewise by name)."""
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)
    """What each client has said of itself, also of those who have left."""
    gone: frozenset[str] = frozenset()
    """Members that may not take part any more, when last looked."""
    counted: dict[str, int] = field(default_factory=dict)
    """The last round in which a client's update counted, where clients keep something."""
    seen: dict[str, tuple[Seen, ...]] = field(default_factory=dict)
    """What was seen of each client in the last rounds, where somebody plans by it."""
    forecast: Callable[[Work], Forecast] = no_forecast
    """What a work takes at a client, for planners."""

    _looked: float = -math.inf
    _steered: Mapping[str, Any] | None = None
    _turned_away: frozenset[str] = frozenset()

    @property
    def private(self) -> "PrivateSum | None":
        """The guard, where it hides each client's part by noise; then nothing is said that only one of them knows."""
        if not self.config.privacy.on:
            return None
        from fedft.server.private_sum import PrivateSum  # as other runs do not need it, nor its libraries

        return self.guard if isinstance(self.guard, PrivateSum) else None

    def enter(self, clients: Collection[str], kept: Mapping[str, Any] | None = None) -> None:
        """Make `clients` the founders of the run, each with its place and the rank that the run file deals out.

        `kept` is the membership that stands with the state; then that holds. Raises ConfigError if nobody is there.
        """
        if not clients:
            raise ConfigError("no clients: nobody is enrolled")
        ranks = [0] if self.recipe.space.rank_free else self.config.ranks()
        self._take(Membership.of(ranks, kept) if kept else Membership.founded(ranks, clients))
        self.look(now=True)

    def seat(self, number: int, asked: Collection[str]) -> None:
        """Make those who may take part now the members of round `number`, durably.

        A round that was begun before a restart keeps its members; `asked` are those who have a plan of it.
        """
        self.number = number
        self.look(now=True)
        members = Membership.of(self.membership.ranks, self.membership.to_dict())
        if asked:
            if (kept := self.store.members(number)) is not None:
                members = Membership.of(members.ranks, kept)
            members.seat({*members.present, *asked})
        elif self.roll is not None:
            there = self._with_room({*self.roll.present()})
            came, left = members.seat(there)
            for name in came:
                log.info("%s takes part from round %d on", name, number)
                self.observe("joined", {"client": name, "round": number, "rank": members.rank(name)})
            if came or left:
                self.store.keep_members(number, members.to_dict())
        self._take(members)
        self.look(now=True)

    def _take(self, members: Membership) -> None:
        self.membership = members
        self.members = {c: Member(members.rank(c), self.profiles.get(c, {})) for c in members.present}

    def _with_room(self, there: set[str]) -> set[str]:
        """Those of `there` with whom the run's messages are not too long for the carrier: all, or the old members."""
        news = frozenset(there - self.membership.places.keys())
        if news:
            try:
                message_sizes.check_sizes(self.config, self.recipe, self.layout, len(there))
            except ConfigError as e:
                if news != self._turned_away:
                    log.error("%s cannot be taken in: %s", ", ".join(sorted(news)), e)
                self._turned_away = news
                return there - news
        return there

    def look(self, *, now: bool = False) -> None:
        """See what was changed and who may not take part any more, at most once a second unless `now`."""
        if not (now or self.clock.monotonic() >= self._looked + LOOK_S):
            return
        self._looked = self.clock.monotonic()
        if self.steering is not None:
            self._hold(self.steering.config_at(self.number))
            if self.steering.said is not self._steered and any((facts := self.steering.facts()).values()):
                self.observe("steered", facts)
            self._steered = self.steering.said
        if self.roll is None:
            return
        self.caps = self.roll.present()
        gone = frozenset(c for c in self.members if c not in self.caps)
        for name in sorted(gone - self.gone):
            why = self.roll.why_not(name)
            log.warning("%s takes no part any more: %s", name, why)
            self.observe("left", {"client": name, "why": why})
        self.gone = gone

    def enrolled(self, client: str, payload: bytes) -> None:
        """Take a client's answer to the job: its held-out rows and its profile. RejectedUpdate for other bytes."""
        said = messages.decode_update(payload, {}, "fp32", max_bytes=SHORT_ANSWER_BYTES)
        profile = {name.removeprefix(PROFILE): x for name, x in said.metrics.items()}
        self.know(client, {**profile, "rows": said.num_examples})
        self.observe("enrolled", {"client": client})

    def _hold(self, config: RunConfig) -> None:
        """Go by this config from now on, and tell clients, before their next letter, what it is for them to know."""
        if config is not self.config:
            self.config, tables = config, told(config)
            if tables != self.job.tables:
                self.job = replace(self.job, tables=tables)

    def know(self, client: str, profile: Mapping[str, float]) -> None:
        """Note what a client said of itself, for plans to go by."""
        self.profiles[client] = dict(profile)
        if client in self.members:
            self.members[client] = Member(self.members[client].rank, dict(profile))

    @property
    def held_out(self) -> dict[str, int]:
        """Held-out rows of each client that has said that it has some, before a restart of the server too."""
        said = {name: int(member.profile.get("held_out", 0)) for name, member in self.members.items()}
        return {name: rows for name, rows in said.items() if rows > 0}

    @property
    def rank(self) -> int:
        """The state's: the largest that any founder was dealt."""
        return self.membership.largest

    def quorum(self, asked: int) -> int:
        """How many of `asked` clients must answer: the share `[server] quorum`, one at least, and of a secure sum t."""
        fewest = self.fewest
        if self.config.privacy.secagg == "clear":
            from fedft.privacy.secure_sum.context import threshold

            fewest = threshold(len(self.members))
        return max(fewest, math.ceil(self.config.server.quorum * asked - 1e-9))

    def until(self, asked: Collection[str], before: int = 0) -> Until:
        """When an exchange ends, by `[server] quorum`, `deadline_s` and `grace_s`.

        Args:
            asked: all whose answers are wanted and may still count.
            before: answers that were there before the exchange.
        """
        need = self.quorum(len(asked)) - before
        limit, grace = self.config.server.deadline_s, self.config.server.grace_s
        if limit is None and not (self.deployed or self.virtual):
            return Until(need, before=before)
        return Until(need, grace, limit or DEADLINE_S, before)

    def enough(self, asked: int) -> int:
        """How many of `asked` clients at work must have answered for a version: the quorum of `[server] buffer`, or of
        all."""
        buffer = self.config.server.buffer
        return self.quorum(asked if buffer is None else min(buffer, asked))

    def until_filled(self, asked: Collection[str], before: int = 0) -> Until:
        """When the exchange of a round ends: with the last answer that `[server] buffer` wants, or as `until` says."""
        buffer, until = self.config.server.buffer, self.until(asked, before)
        return until if buffer is None else replace(until, need=min(buffer, len(asked)) - before, grace_s=0.0)

    def until_measured(self, asked: Collection[str]) -> Until:
        """When an evaluation ends: as a round; with its last answer where virtual devices take no time for it."""
        return Until() if self.virtual else self.until(asked)

    def still(self, clients: Collection[str]) -> Collection[str]:
        """Those of `clients` who may take part, in their order."""
        return [c for c in clients if c not in self.gone] if self.gone else clients

    @property
    def timed(self) -> bool:
        """Whether seconds say something of clients: those of a simulation without a clock of its own do not."""
        return self.deployed or self.virtual

    def plans(self, state: State, clients: Collection[str]) -> dict[str, Plan]:
        """What each of these clients is to do from this state on, without the tensors that bring the client there.

        Raises ConfigError where the recipe's plan makes no sense.
        """
        c, version = self.config.local, state.version
        asked = tuple(sorted(clients, key=str.encode))
        roster = Roster(planner_view.shown(self.members, self.seen), version, self.job.seed, asked, self.forecast)
        lr = schedules.of_round(c, version, self.config.server.rounds)
        bare = Plan(self.job.run, version, version, steps=c.steps, learning_rate=lr)
        try:
            found = self.recipe.plans(state, roster, bare, self.rank)
        except ValueError as e:
            raise ConfigError(f"{self.recipe.name}, round {version}: {e}") from e
        mine = {name: _of_epochs(found[name], self.members[name], c) for name in clients}
        return {name: _counted(plan, self.counted.get(name)) for name, plan in mine.items()}

    def durable_plans(
        self,
        state: State,
        clients: Collection[str],
        going_on: Mapping[str, Plan] | None = None,
        extra: Mapping[str, Scalar] = MappingProxyType({}),
    ) -> dict[str, Plan]:
        """The training plans of a round, on disk before anybody is sent one; those of a run that was killed stand.

        `going_on` are those of earlier rounds that clients are at still; new ones say `extra`, too. What is admitted
        and aggregated is judged by all these and by no plan that is made later. Raises OtherVersion where a newer fedft
        has begun the round.
        """
        kept = self.store.plans(state.version)
        try:
            found = {c: messages.decode_plan(data, max_bytes=len(data)) for c, data in kept.items()}
        except RejectedUpdate as e:
            where = f"the plans of round {state.version} on disk cannot be read ({e})"
            raise OtherVersion(f"{where}; end the round with the fedft that began it; nothing was changed") from e
        if missing := [c for c in clients if c not in found]:
            found |= {c: p for c, p in (going_on or {}).items() if c in missing}
            new = self.plans(state, [c for c in missing if c not in found])
            found |= {c: replace(p, extra={**p.extra, **extra}) if extra else p for c, p in new.items()}
            encoded = {c: messages.encode_plan(found[c], "fp32") for c in found}
            self.store.keep_plans(state.version, encoded)
        return {c: found[c] for c in clients}


def _of_epochs(plan: Plan, member: Member, local: Local) -> Plan:
    """The plan with as many steps as `[local] epochs` are for the member's rows, unless somebody else chose them."""
    if local.epochs is None or plan.steps != local.steps or "rows" not in member.profile:
        return plan
    return replace(plan, steps=local.steps_over(int(member.profile["rows"])))


def _counted(plan: Plan, counted: int | None) -> Plan:
    return plan if counted is None else replace(plan, counted=counted)
