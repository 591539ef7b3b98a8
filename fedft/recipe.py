"""A strategy is a `Recipe`: a frozen value naming only what is new about an algorithm; the rest has plain defaults.

    server   state = initial(layout, rank, seed)                                     version 0
             works = plan(state, roster)                                             who does how much in this round
             plan.tensors = downlink(state, have, plan)                       ~~>    what takes a client from `have`
    client   held = receive(held, plan)                                              to the state, a pure function
             start(handle, turn)                                                     the model stands at the state
             trained = local(handle, data, turn)                                     steps, and nothing else
             trained = each of uploads(trained, turn, handle)                 ~~>    clip, noise, code, mask
    server   change = aggregate(updates)                                             streams, roster order
             state = server(state, change)                                           version + 1

A state has two drawers, one that is shared and one that is the server's own; both are named tensors: they are hashed
and saved as they are. Whatever is linear in what clients send (`linear`) gets exact averaging in O(1) memory from
`mean`, and later secure sums and differential privacy, for nothing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.aggregation.mean import mean
from fedft.arithmetic import tensors
from fedft.arithmetic.named_pairs import cut, split
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import (
    STAGES,
    Batch,
    Course,
    Data,
    Drawers,
    Handle,
    Kind,
    Layout,
    Learning,
    LocalStep,
    Member,
    Metrics,
    Next,
    Planner,
    Roster,
    State,
    Term,
    Trained,
    Transform,
    Turn,
    Work,
)
from fedft.training.first_order import FirstOrder
from fedft.training.zeroth_rules import Walk
from fedft.update import Download, Plan, Shape, Spec, TensorSpec, Update

# What a strategy is written with; other names of this module are defaults of a `Recipe`'s parts.
__all__ = [
    "Batch", "Course", "Data", "Drawers", "FirstOrder", "Full", "Handle", "Kind", "Layout", "Learning", "LoRA",
    "LocalStep", "Member", "Metrics", "Next", "Plan", "Recipe", "Roster", "Shape", "Spec", "State", "Tensors", "Term",
    "Trained", "Transform", "Turn", "Update", "Work", "add", "anything", "back_to_base", "cut_to_rank", "everything",
    "l2_norm", "mean", "product_norm", "replace_all", "work_of", "write_all",
]  # fmt: skip


WHOLE = "whole"  # in `Plan.extra`: evaluate the state at its own rank, which may be above the client's; hold none of it


def add(state: State, change: Tensors) -> dict[str, Tensor]:
    """The shared tensors of `state`, with the change added to those that it names."""
    return {**state.tensors, **{n: state.tensors[n] + d for n, d in change.items()}}


def everything(state: State, have: int | None, plan: Plan) -> Tensors:
    """All shared tensors of the state; none when the client already stands there."""
    return {} if have == state.version else state.tensors


def cut_to_rank(state: State, have: int | None, plan: Plan) -> Tensors:
    """The whole state with its factors cut to the client's rank: the first rows of A, the first columns of B."""
    return {} if have == state.version else cut(state.tensors, plan.shape.of)


def replace_all(held: State | None, plan: Plan) -> Tensors:
    """The tensors that came down, which replace what the client held; what it held where nothing came."""
    return held.tensors if held is not None and plan.have == plan.version else plan.tensors


def write_all(handle: Handle, turn: Turn) -> None:
    """Put the model's trained tensors at the state that the client holds, frozen ones at their draw from the seed."""
    frozen = handle.kind.frozen(handle.layout, turn.plan.shape, turn.run_seed)
    handle.write({**frozen, **turn.held} if frozen else turn.held, turn.plan.shape.without)


def back_to_base(handle: Handle, turn: Turn) -> None:
    """Put the model back to w0: its parameters bit for bit, or its adapter to version 0."""
    handle.reset()
    if not handle.kind.of_base:
        shape = turn.plan.shape
        handle.write(handle.kind.initial(handle.layout, shape, turn.run_seed), shape.without)


def as_it_is(delta: Tensors, plan: Plan) -> Tensors:
    """The upload itself: named float tensors are their own summand."""
    return delta


def anything(delta: Tensors, plan: Plan) -> None:
    """The default of `Recipe.admit`: whatever fits the spec is admitted."""


def spec_of(x: Tensors) -> Spec:
    """Shapes and dtypes of tensors by name."""
    return {n: TensorSpec(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in x.items()}


def nothing(spec: Spec) -> dict[str, Tensor]:
    """An upload of this spec in which nothing has changed: zeros, and lists without an entry."""
    shapes = {n: (0, *t.shape[1:]) if t.at_most else t.shape for n, t in spec.items()}
    return {n: torch.zeros(shapes[n], dtype=getattr(torch, t.dtype)) for n, t in spec.items()}


def l2_norm(delta: Tensors, plan: Plan) -> float:
    """The L2 norm of all floats of an upload, taken as one vector."""
    return tensors.norm(tensors.floats(delta))


def product_norm(delta: Tensors, plan: Plan) -> float:
    """The L2 norm of an upload's products B A and of all that is no pair: where only products reach the state."""
    pairs, rest = split(delta)
    return (sum(d.norm() ** 2 for d in pairs.values()) + l2_norm(rest, plan) ** 2) ** 0.5


def as_configured(state: State, roster: Roster) -> Mapping[str, Work]:
    """The default of `Recipe.plan`: every client does what the run file says."""
    return {}


def work_of(plan: Plan) -> Work:
    """The default of `Recipe.takes`: a plan's turn takes what its shape, steps, batch and bits say."""
    return Work(plan.shape, plan.steps, plan.learning_rate, plan.batch, plan.bits, plan.extra)


def any_run(config: RunConfig) -> None:
    """The default of `Recipe.check`: every run file makes sense."""


@dataclass(frozen=True)
class Recipe:
    """The parts of an algorithm; see the module docstring for when each is called."""

    name: str
    space: Kind
    """What is trained and exchanged. With `any_kind` the run file may put another kind in its place."""
    aggregate: Callable[[Iterable[Update]], dict[str, Tensor]] = mean
    """Updates -> change; reads them once, in roster order. You need one wherever the mean of deltas is not the rule."""
    local: LocalStep = field(default_factory=FirstOrder)
    """What a client does; `FirstOrder(send="value")` where it starts from a draw of its own instead of the state."""
    walk: Walk | None = None
    """How `local` takes zeroth-order steps (`zeroth_order.walk`); None: it takes none."""
    initial: "Callable[[Layout, int, int], Tensors | Next] | None" = None
    """(layout, largest rank, seed) -> tensors of version 0; default: those of the space that learn."""
    server: Callable[[State, Tensors], "Tensors | Next"] = add
    """(state, change) -> shared tensors of the next version: server optimisers, merges, pools. A server that keeps
    something for itself gives `Next`: those tensors, and its own drawer."""
    downlink: Callable[[State, int | None, Plan], Tensors] = everything
    """(state, version the client holds or None, plan) -> what it must receive. Needed where ranks differ, or where the
    state grows and only the news should travel; then `receive` must lead to the same tensors by either way."""
    receive: Callable[[State | None, Plan], Tensors] = replace_all
    """(what the client held or None, plan with what came) -> what it holds now."""
    start: Callable[[Handle, Turn], None] = write_all
    """Put the model at `turn.held`. Needed where that is more than writing the trained tensors."""
    download: Callable[[Layout, Plan], Download | None] | None = None
    """(layout, plan without tensors) -> what may come down with it; checked before a tensor is decoded. Default: the
    tensors of version 0, where `downlink` sends all of them or cuts them to a rank; any, where it is the recipe's."""
    upload: Callable[[Layout, Plan], Spec] | None = None
    """What a client uploads; default: what the space trains."""
    admit: Callable[[Tensors, Plan], None] = anything
    """Raises RejectedUpdate for a delta that fits the spec and breaks the strategy's own rule."""

    uploads: tuple[Transform, ...] = ()
    """What happens to a client's result on its way out, in order of stage: clip, noise, code, mask."""
    plan: Planner = as_configured
    """(state, all clients by name) -> work of those who do other than the run file says; one pure call per round."""
    remembers: int | None = 16
    """Rounds of each client that `plan` is shown, the last so many in which the client was asked; None: all."""
    takes: Callable[[Plan], Work] = work_of
    """(plan) -> the work that a forecast of its turn is made of. Needed where a client trains another adapter than the
    plan's shape says, as in a probe."""
    check: Callable[[RunConfig], None] = any_run
    """(RunConfig) raises ValueError with the reason where the run file makes no sense with this strategy."""

    summand: Callable[[Tensors, Plan], Tensors] = as_it_is
    """(upload, plan) -> float tensors of the same names and shapes for all clients, whose weighted sum is all that a
    linear strategy needs. Needed where uploads are lists."""
    from_sum: Callable[[Tensors, Plan], Tensors] = as_it_is
    """(mean of summands, plan) -> an upload that `aggregate` makes of it what it makes of all of them."""
    reach: Callable[[RunConfig, str], float] | None = None
    """(run file, name of a summand's tensor) -> the largest magnitude that a number of it can have, for the integers of
    secure sums; raises ValueError where nobody knows. None: as far as the optimiser can go."""

    linear: bool = True
    """The server needs only weighted sums of what is sent."""
    weighs_by_examples: bool = True
    """`aggregate` weighs updates by `num_examples`, in which robust sums say who counts how much."""
    ring_summable: bool = False
    """What is sent can be summed as integers under masks (needs equal shapes for all clients)."""
    reveals_clients: bool = False
    """What is broadcast shows single clients' tensors."""
    unlike_ranks: bool = False
    """Clients may have different LoRA ranks."""
    unlike_modules: bool = False
    """Clients may train different modules (`Shape.chosen`): aggregated by name, over those who sent it."""
    bases: Literal["same", "any"] = "same"
    """What clients' bases may differ in: "any": one site has it in 16 bits and another in 4, since what travels is of
    adapters, or of changes beside the base; "same": all have it in the run's precision."""
    any_kind: bool = False
    """Any kind of adapter will do: tensors are averaged by name, whatever they mean."""
    upload_kind: Literal["changes", "values", "numbers"] = "changes"
    """What uploads are: changes of named tensors; their values (`send="value"`); or other numbers (scalars, lists)."""
    norm: Callable[[Tensors, Plan], float] = l2_norm
    """(upload, plan) -> how large it is, for the limits on what one client may move."""
    downlink_is_increment: bool = False
    """Clients add up what comes down, so it must come as it is: codec.down = "fp32"."""
    evaluation_has_own_state: bool = False
    """A model is evaluated from other tensors than it is trained from (plans of no steps): neither is kept for both."""
    keeps: bool = False
    """Clients keep something for themselves between rounds (`Trained.kept`)."""
    averages_changes: bool | None = None
    """`aggregate` gives a mean of the clients' changes; None: it does if it is left at its default. See `averages`."""
    adds_changes: bool | None = None
    """`server` adds the change to the state; None: it does if it is left at its default. See `adds`."""
    takes_stale: bool | None = None
    """Updates that were trained from an older state may be aggregated as they are; None: where `aggregate` gives a mean
    of changes which `server` adds. See `allows_stale`."""
    cuts_to_rank: bool | None = None
    """`downlink` cuts the state to the client's rank; None: it does if it is `cut_to_rank`. See `cuts_the_state`."""
    with_server: "Callable[[Recipe, Callable[[State, Tensors], Tensors | Next]], Recipe] | None" = None
    """(this recipe, another server step for x) -> the recipe with it; needed where a change holds more than x."""
    personal: bool = False
    """A client's model is the state and what it keeps: there is no single global model, evaluation is per client."""

    @property
    def averages(self) -> bool:
        """Whether what `aggregate` gives is a mean of changes."""
        return self.aggregate is mean if self.averages_changes is None else self.averages_changes

    @property
    def adds(self) -> bool:
        """Whether the next state is the last one plus the change."""
        return self.server is add if self.adds_changes is None else self.adds_changes

    @property
    def allows_stale(self) -> bool:
        """Whether rounds need not wait: an update counts whichever of the last states it was trained from."""
        if self.takes_stale is not None:
            return self.takes_stale
        return self.averages and self.adds and self.upload_kind == "changes"

    @property
    def sends_whole_state(self) -> bool:
        """Whether every client holds all shared tensors as they are."""
        return self.downlink is everything and self.receive is replace_all

    @property
    def replaces_what_is_held(self) -> bool:
        """Whether the newest that came down is all that a client holds; else it adds what comes to what it had."""
        return self.receive is replace_all

    @property
    def cuts_the_state(self) -> bool:
        """Whether a client of a smaller rank than the state's holds a part of it only."""
        return self.downlink is cut_to_rank if self.cuts_to_rank is None else self.cuts_to_rank

    def is_held(self, plan: Plan) -> bool:
        """Whether a client stands at this plan's state from then on; else the plan is for one evaluation."""
        return not (plan.evaluate and (self.evaluation_has_own_state or WHOLE in plan.extra))

    def spec(self, layout: Layout, plan: Plan) -> Spec:
        """Names, shapes and dtypes of what a client with this plan uploads."""
        return self.upload(layout, plan) if self.upload else self.space.spec(layout, plan.shape)

    def downloads(self, layout: Layout, plan: Plan) -> Download | None:
        """What may come down with a plan, whose tensors are not looked at; None where the strategy does not say."""
        if self.download is not None:
            return self.download(layout, plan)
        if self.downlink not in (everything, cut_to_rank):
            return None
        spec: Spec = self.space.spec(layout, plan.shape.largest)
        if self.initial is not None:
            spec = spec_of(self.first_state(layout, plan.shape.largest, 0).tensors)
        return {n: replace(t, at_most=self.cuts_the_state) for n, t in spec.items()}.get

    def first_state(self, layout: Layout, rank: int, seed: int) -> State:
        """The state at version 0, for the largest `rank` of any client."""
        made = (self.initial or self.space.start)(layout, rank, seed)
        return State(0, made.tensors, made.own) if isinstance(made, Next) else State(0, made)

    def next_state(self, state: State, change: Tensors) -> State:
        """The state of the next version: what `server` makes of the change; drawers that it does not touch stay."""
        return state.followed_by(self.server(state, change))

    @property
    def plans_work(self) -> bool:
        """Whether somebody plans for clients what the run file does not say."""
        return self.plan is not as_configured

    def plans(self, state: State, roster: Roster, bare: Plan, largest: int) -> dict[str, Plan]:
        """The plan of every client of the roster: `bare` with the client's own work, and its tensors, in it.

        Raises ValueError where `plan` gives a rank above `largest`, that of the state, or unlike ranks or modules where
        that is impossible.
        """
        works, found = self.plan(state, roster), {}
        for client, member in roster.items():
            plan = works.get(client, Work()).planned(bare, member.rank)
            if plan.shape.largest > largest:
                raise ValueError(f"the plan of {client} has rank {plan.shape.largest}, the state {largest}")
            if not self.unlike_ranks and (plan.ranks or plan.rank != member.rank):
                raise ValueError(f"the plan of {client} has another rank than the others, which {self.name} cannot mix")
            if plan.chosen and not self.unlike_modules:
                raise ValueError(f"by the plan of {client} some modules do not learn, which {self.name} cannot mix")
            found[client] = plan
        return found

    def sent(self, trained: Trained, turn: Turn, handle: Handle) -> Trained:
        """A client's result after every transform of `uploads`, in order of stage."""
        for transform in sorted(self.uploads, key=lambda t: STAGES.index(t.stage)):
            trained = transform.apply(trained, turn, handle)
        return trained
