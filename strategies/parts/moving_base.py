"""A state whose base weights move: W^t = w0 + the sum of low-rank steps, kept apart and never added to weights.

state      `<module>.lora_A`, `<module>.lora_B`     the whole sum as factors, of at most o i / (o + i) rows
           `<module>.lora_BA`                       or, once it has had more, multiplied out
           `step.<version>.<name>`                  the last steps: what led from <version> to the next
           any other name                           a value that every round replaces (a head, averaged factors)
downlink   the steps that a client lacks or the whole sum, whichever is smaller, and the other values
receive    what it held + those steps, by the code that the server adds with: veteran and newcomer hold the same bits

Both are in the shorter form (`fedft.arithmetic.weight_changes`): a sum never outweighs the weights that it moves. Steps
that together outweigh it are forgotten: a client that lacks so much is better served with the whole sum.
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs, weight_changes
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import DENSE_SUFFIX
from fedft.contract import Handle, Layout, State, Turn
from fedft.recipe import Recipe
from fedft.training.first_order import FirstOrder
from fedft.update import Download, Plan, Spec, TensorSpec, Update

STEP = "step."  # "step.<version>.<name>" is the stack that led from <version> to the next


def of_moving_base(
    name: str,
    aggregate: Callable[[Iterable[Update]], dict[str, Tensor]],
    initial: Callable[[Layout, int, int], Tensors],
    start: Callable[[Handle, Turn], None],
    values: Callable[[Layout, Plan], Spec],
) -> Recipe:
    """A recipe of LoRA whose clients send values of factors and whose `aggregate` gives a step of the base as pairs.

    `values` says what the state has beside the pairs.
    """
    return Recipe(
        name,
        LoRA(),
        aggregate=aggregate,
        local=FirstOrder("value"),
        initial=initial,
        server=merge,
        downlink=since,
        receive=catch_up,
        download=lambda layout, plan: download(layout, plan, values(layout, plan)),
        start=start,
        linear=False,
        bases="any",
        reveals_clients=True,
        upload_kind="values",
        downlink_is_increment=True,
    )


def nothing_yet(layout: Layout) -> dict[str, Tensor]:
    """The sum at version 0: rank 0 in every module."""
    return named_pairs.to_names({m: lowrank.zero(o, i) for m, (o, i) in layout.modules.items()})


def merge(state: State, change: Tensors) -> Tensors:
    """One more step, the pairs of `change`; whatever else is in it replaces what the state had."""
    stack, values = weight_changes.split(change)
    step = weight_changes.to_names({m: weight_changes.shorter(d) for m, d in stack.items()})
    total, steps = _parts(state.tensors)
    total, steps[state.version] = _plus(total, step) | values, step
    while len(steps) > 1 and sum(map(_size, steps.values())) > _size(total):
        del steps[min(steps)]
    return total | {f"{STEP}{v}.{n}": x for v, s in steps.items() for n, x in s.items()}


def since(state: State, have: int | None, plan: Plan) -> Tensors:
    """The steps from `have` on and the other values, or the whole sum and the other values."""
    total, steps = _parts(state.tensors)
    if have == state.version:
        return {}
    if have is None or have > state.version or any(v not in steps for v in range(have, state.version)):
        return total
    values = weight_changes.split(total)[1]
    lacking = {f"{STEP}{v}.{n}": x for v in range(have, state.version) for n, x in steps[v].items()} | values
    return lacking if _size(lacking) < _size(total) else total


def download(layout: Layout, plan: Plan, values: Spec) -> Download:
    """What may come down: of the sum and of each step pairs of rank at most min(o, i), or dense; the other values."""
    pairs: dict[str, TensorSpec] = {}
    for m, (o, i) in layout.modules.items():
        r = min(o, i)
        pairs |= {m + A_SUFFIX: TensorSpec((r, i), at_most=True), m + B_SUFFIX: TensorSpec((o, r), at_most=True)}
        pairs[m + DENSE_SUFFIX] = TensorSpec((o, i))

    def wanted(name: str) -> TensorSpec | None:
        if not name.startswith(STEP):
            return pairs.get(name) or values.get(name)
        version, _, tensor = name.removeprefix(STEP).partition(".")
        return pairs.get(tensor) if plan.leads_from(version) else None

    return wanted


def catch_up(held: State | None, plan: Plan) -> Tensors:
    """What was held after the steps that came, or the sum that came; no step stays."""
    total, steps = _parts(plan.tensors)
    if held is None or not steps:
        return held.tensors if held is not None and plan.have == plan.version else total
    pairs: Tensors = held.tensors
    for version in sorted(steps):
        pairs = _plus(pairs, steps[version])
    return {**pairs, **total}


def stand(handle: Handle, turn: Turn) -> dict[str, Tensor]:
    """The other values of the state, after the base weights were set to w0 + the whole sum."""
    changes, values = weight_changes.split(turn.held)
    handle.set_base_change(changes, key=turn.held_digest)
    return values


def _plus(total: Tensors, step: Tensors) -> dict[str, Tensor]:
    """The sum after one more step, without other values. Same code, hence same bits, on both sides."""
    before, news = weight_changes.split(total)[0], weight_changes.split(step)[0]
    after = {m: weight_changes.shorter(weight_changes.plus(before[m], d)) for m, d in news.items()}
    return weight_changes.to_names({**before, **after})  # a module that nobody has trained stays


def _size(x: Tensors) -> int:
    return sum(t.numel() for t in x.values())


def _parts(tensors: Tensors) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """(the whole sum and the other values, the steps by the version they start from)."""
    total: dict[str, Tensor] = {}
    steps: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith(STEP):
            version, tensor = name.removeprefix(STEP).split(".", 1)
            steps.setdefault(int(version), {})[tensor] = x
        else:
            total[name] = x
    return total, steps
