"""What all rounds of one run share: the recipe, who takes part with what, and the plans of a round."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from fedft.config import RunConfig
from fedft.contract import Layout, Member, State
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.reports.observers import Observer
from fedft.server.checkpoint import Store
from fedft.server.exchange import Exchange, Until
from fedft.update import Job, Plan
from fedft.wire import messages

DEADLINE_S = 3600.0  # of a deployment whose run file sets none: a round ends whatever the sites do


@dataclass
class Federation:
    """One run, as its rounds see it."""

    recipe: Recipe
    layout: Layout
    config: RunConfig
    job: Job
    store: Store
    talk: Exchange
    observe: Observer
    deployed: bool
    caps: Mapping[str, int]
    """Most examples that a client may claim, where that is less than `[limits] max_num_examples`."""
    members: dict[str, Member] = field(default_factory=dict)
    """All who may take part, in roster order (bytewise by name)."""
    counted: dict[str, int] = field(default_factory=dict)
    """The last round in which a client's update counted, where clients keep something."""

    def enter(self, clients: Collection[str]) -> None:
        """Everybody's place in the roster, and the rank that the run file deals out. Raises ConfigError for nobody."""
        if not clients:
            raise ConfigError("no clients: nobody is enrolled")
        ranks = [0] if self.recipe.space.rank_free else self.config.ranks()
        names = sorted(clients, key=str.encode)
        self.members = {name: Member(ranks[i % len(ranks)]) for i, name in enumerate(names)}

    @property
    def rank(self) -> int:
        """The largest rank of anybody: the state's."""
        return max(member.rank for member in self.members.values())

    def quorum(self, asked: int) -> int:
        """How many of `asked` clients must answer."""
        return max(1, math.ceil(self.config.server.quorum * asked - 1e-9))

    def until(self, need: int) -> Until:
        """When an exchange ends of which `need` answers are enough."""
        limit, grace = self.config.server.deadline_s, self.config.server.grace_s
        if limit is None and not self.deployed:
            return Until(need)
        return Until(need, grace, limit or DEADLINE_S)

    def plans(self, state: State, clients: Collection[str]) -> dict[str, Plan]:
        """What each of these clients is to do from this state on, without the tensors that bring it there.

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

        What is admitted and aggregated is judged by these and by no plan that is made later.
        """
        kept = self.store.plans(state.version)
        found = {c: messages.decode_plan(data, max_bytes=len(data)) for c, data in kept.items()}
        if missing := [c for c in clients if c not in found]:
            found |= self.plans(state, missing)
            encoded = {c: messages.encode_plan(found[c], "fp32") for c in found}
            self.store.keep_plans(state.version, encoded)
        return {c: found[c] for c in clients}


def _counted(plan: Plan, counted: int | None) -> Plan:
    return plan if counted is None else replace(plan, counted=counted)
