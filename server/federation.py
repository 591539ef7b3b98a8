"""What everything in one run shares: how letters travel, the recipe, who takes part, and the plans of a round."""

import math
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from fedft.carriers.interface import SHORT_ANSWER_BYTES, Post
from fedft.config import RunConfig
from fedft.contract import Layout, Member, State
from fedft.errors import ConfigError, OtherVersion, RejectedUpdate
from fedft.recipe import Recipe
from fedft.reports.observers import Observer
from fedft.server.checkpoint import Store
from fedft.server.traffic import Clock, Until
from fedft.update import Job, Plan
from fedft.wire import messages

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
    deployed: bool = False
    """Sites come and go: whoever is not there is waited for up to quorum and deadline, and never an error."""
    caps: Mapping[str, int] = field(default_factory=dict)
    """Most examples that a client may claim, where that is less than `[limits] max_num_examples`."""
    members: dict[str, Member] = field(default_factory=dict)
    """All who may take part, in roster order (bytewise by name)."""
    counted: dict[str, int] = field(default_factory=dict)
    """The last round in which a client's update counted, where clients keep something."""

    def enter(self, clients: Collection[str]) -> None:
        """Give each client its place in `members`, and the rank that the run file deals out.

        Raises ConfigError if there are no clients.
        """
        if not clients:
            raise ConfigError("no clients: nobody is enrolled")
        ranks = [0] if self.recipe.space.rank_free else self.config.ranks()
        names = sorted(clients, key=str.encode)
        self.members = {name: Member(ranks[i % len(ranks)]) for i, name in enumerate(names)}

    def enrolled(self, client: str, payload: bytes) -> None:
        """Take a client's answer to the job: its held-out rows and its profile. RejectedUpdate for other bytes."""
        said = messages.decode_update(payload, {}, "fp32", max_bytes=SHORT_ANSWER_BYTES)
        self.know(client, {**said.metrics, "rows": said.num_examples})
        self.observe("enrolled", {"client": client})

    def know(self, client: str, profile: Mapping[str, float]) -> None:
        """Note what a member said of itself, for plans to go by; a client that is no member is passed over."""
        if client in self.members:
            self.members[client] = Member(self.members[client].rank, dict(profile))

    @property
    def held_out(self) -> dict[str, int]:
        """Held-out rows of each client that has said that it has some, before a restart of the server too."""
        said = {name: int(member.profile.get("held_out", 0)) for name, member in self.members.items()}
        return {name: rows for name, rows in said.items() if rows > 0}

    @property
    def rank(self) -> int:
        """The largest rank of any member: the state's."""
        return max(member.rank for member in self.members.values())

    def quorum(self, asked: int) -> int:
        """How many of `asked` clients must answer: the share `[server] quorum`, and one at least."""
        return max(1, math.ceil(self.config.server.quorum * asked - 1e-9))

    def until(self, need: int) -> Until:
        """When an exchange ends of which `need` answers are enough, by `[server] deadline_s` and `grace_s`."""
        limit, grace = self.config.server.deadline_s, self.config.server.grace_s
        if limit is None and not self.deployed:
            return Until(need)
        return Until(need, grace, limit or DEADLINE_S)

    def plans(self, state: State, clients: Collection[str]) -> dict[str, Plan]:
        """What each of these clients is to do from this state on, without the tensors that bring the client there.

        Raises ConfigError where the recipe's plan makes no sense.
        """
        c, version = self.config.local, state.version
        lr = c.learning_rate * c.learning_rate_decay**version
        bare = Plan(self.job.run, version, version, steps=c.steps, learning_rate=lr)
        try:
            found = self.recipe.plans(state, self.members, bare, self.rank)
        except ValueError as e:
            raise ConfigError(f"{self.recipe.name}, round {version}: {e}") from e
        return {name: _counted(found[name], self.counted.get(name)) for name in clients}

    def durable_plans(self, state: State, clients: Collection[str]) -> dict[str, Plan]:
        """The training plans of a round, on disk before anybody is sent one; those of a run that was killed stand.

        What is admitted and aggregated is judged by these and by no plan that is made later. Raises OtherVersion where
        a newer fedft has begun the round.
        """
        kept = self.store.plans(state.version)
        try:
            found = {c: messages.decode_plan(data, max_bytes=len(data)) for c, data in kept.items()}
        except RejectedUpdate as e:
            where = f"the plans of round {state.version} on disk cannot be read ({e})"
            raise OtherVersion(f"{where}; end the round with the fedft that began it; nothing was changed") from e
        if missing := [c for c in clients if c not in found]:
            found |= self.plans(state, missing)
            encoded = {c: messages.encode_plan(found[c], "fp32") for c in found}
            self.store.keep_plans(state.version, encoded)
        return {c: found[c] for c in clients}


def _counted(plan: Plan, counted: int | None) -> Plan:
    return plan if counted is None else replace(plan, counted=counted)
