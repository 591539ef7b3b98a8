"""FLoRA: clients of any rank; their factors are stacked, not averaged, so the server's change is exact.

    A_st = [A_1; ...; A_n],  B_st = [p_1 B_1, ..., p_n B_n],  B_st A_st = sum_k p_k (alpha_k / r_k) B_k A_k     (eq. 3)
    W^{t+1} = W^t + B_st A_st;  every client restarts from a fresh A_k and B_k = 0

Here W is never the state: the state is the sum of all stacks since w0, factored, and W^t = w0 + that sum in one float32
addition. A client that took part in every round and one that came yesterday hold the same factors, hence (on one type
of machine) the same bits.
Stacks are concatenated while that is shorter than min(o, i) rows and recompressed exactly beyond, by the same code on
both sides. The last few stacks are kept as well: a client receives the stacks it lacks or the whole sum, whichever is
smaller. Uploads are the factors themselves (`send="value"`), because A_k starts from the client's own draw.

Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations", NeurIPS 2024,
arXiv:2409.05976.
"""

from collections.abc import Iterable

from torch import Tensor

from fedft import lowrank, tensors
from fedft.lowrank import LowRank
from fedft.recipe import FirstOrder, Handle, Layout, LoRA, Recipe, State, Turn
from fedft.tensors import Tensors
from fedft.update import Plan, Update

STEP = "step."  # "step.<version>.<name>" is the stack that led from <version> to the next
SPACE = LoRA()


def flora() -> Recipe:
    """Exact aggregation for unlike ranks; a head, if there is one, is averaged."""
    return Recipe(
        "flora",
        SPACE,
        aggregate=stacked,
        local=FirstOrder(send="value"),
        initial=_nothing_yet,
        server=_merge,
        downlink=_since,
        receive=_catch_up,
        start=_restart,
        linear=False,
        reveals_clients=True,
        unlike_ranks=True,
        sends_products=True,
        adds_downloads=True,
    )


def stacked(updates: Iterable[Update]) -> dict[str, Tensor]:
    """The stack of all pairs with p_k on B, and the p_k-mean of everything that is not a pair."""
    pairs: dict[str, list[tuple[LowRank, float]]] = {}
    rest: list[tuple[Tensors, float]] = []
    for u in updates:
        of_client, other = lowrank.split(u.delta)
        for m, d in of_client.items():
            pairs.setdefault(m, []).append((d, u.num_examples))
        rest.append((other, u.num_examples))
    return lowrank.named({m: lowrank.stack(ds) for m, ds in pairs.items()}) | tensors.weighted_mean(rest)


def _nothing_yet(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    empty = {m: lowrank.zero(o, i) for m, (o, i) in layout.modules.items()}
    head = {n: x for n, x in SPACE.initial(layout, rank, seed).items() if n in layout.head}
    return lowrank.named(empty) | head


def _plus(total: Tensors, step: Tensors) -> dict[str, Tensor]:
    """The pairs of the sum after one more stack. Same code, hence same bits, on both sides."""
    pairs = lowrank.split(total)[0]
    return lowrank.named({m: _short(pairs[m] + d) for m, d in lowrank.split(step)[0].items()})


def _short(d: LowRank) -> LowRank:
    return d if d.rank <= min(d.shape) else d.truncate()


def _merge(state: State, change: Tensors) -> Tensors:
    stack, head = lowrank.split(change)
    step = lowrank.named({m: _short(d) for m, d in stack.items()})
    total, steps = _parts(state.tensors)
    total, steps[state.version] = _plus(total, step) | head, step
    while len(steps) > 1 and sum(map(_size, steps.values())) > _size(total):
        del steps[min(steps)]  # a client that lacks so much is better served with the whole sum
    return total | {f"{STEP}{v}.{n}": x for v, s in steps.items() for n, x in s.items()}


def _size(x: Tensors) -> int:
    return sum(t.numel() for t in x.values())


def _parts(tensors: Tensors) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """(the whole sum and the head, the stacks by the version they start from)."""
    total: dict[str, Tensor] = {}
    steps: dict[int, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        if name.startswith(STEP):
            version, tensor = name.removeprefix(STEP).split(".", 1)
            steps.setdefault(int(version), {})[tensor] = x
        else:
            total[name] = x
    return total, steps


def _since(state: State, have: int | None, plan: Plan) -> Tensors:
    """The stacks from `have` on and the head, or the whole sum and the head."""
    total, steps = _parts(state.tensors)
    if have == state.version:
        return {}
    if have is None or have > state.version or any(v not in steps for v in range(have, state.version)):
        return total
    head = lowrank.split(total)[1]
    lacking = {f"{STEP}{v}.{n}": x for v in range(have, state.version) for n, x in steps[v].items()} | head
    return lacking if _size(lacking) < _size(total) else total


def _catch_up(held: State | None, plan: Plan) -> Tensors:
    total, steps = _parts(plan.tensors)
    if held is None or not steps:
        return held.tensors if held is not None and plan.have == plan.version else total
    pairs: Tensors = held.tensors
    for version in sorted(steps):
        pairs = _plus(pairs, steps[version])
    return {**pairs, **total}


def _restart(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum; A a fresh draw of this client, B zero: the function is unchanged."""
    pairs, head = lowrank.split(turn.held)
    handle.stand(pairs, key=turn.held_digest)
    handle.write({**SPACE.initial(handle.layout, turn.plan.rank, turn.seed), **head})
