"""FLoRA: clients of any rank; their factors are stacked, not averaged, so the server's change is exact.

    A_st = [A_1; ...; A_n],  B_st = [p_1 B_1, ..., p_n B_n],  B_st A_st = sum_k p_k (alpha_k / r_k) B_k A_k     (eq. 3)
    W^{t+1} = W^t + B_st A_st;  every client restarts from a fresh A_k and B_k = 0

Here W is never the state: the state is the sum of all stacks since w0, factored, and W^t = w0 + that sum in one float32
addition. A client that took part in every round and one that came yesterday hold the same factors, hence the same bits.
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
    """The sum after one more stack; a head value is replaced by the newer one. Same code, same bits, on both sides."""
    pairs, _ = lowrank.split(total)
    new, head = lowrank.split(step)
    sums = {m: _short(pairs[m] + d) for m, d in new.items()}
    return lowrank.named(sums) | head


def _short(d: LowRank) -> LowRank:
    return d if d.rank <= min(d.shape) else d.truncate()


def _merge(state: State, change: Tensors) -> Tensors:
    step = lowrank.named({m: _short(d) for m, d in lowrank.split(change)[0].items()}) | lowrank.split(change)[1]
    total, steps = _parts(state.tensors)
    steps[state.version] = step
    total = _plus(total, step)
    limit = sum(x.numel() for x in total.values())
    while sum(x.numel() for s in steps.values() for x in s.values()) > max(
        limit, sum(x.numel() for x in steps[state.version].values())
    ):
        del steps[min(steps)]  # a client that lacks so much is better served with the whole sum
    return total | {f"{STEP}{v}.{n}": x for v, s in steps.items() for n, x in s.items()}


def _parts(held: Tensors) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    """(the whole sum, the stacks by the version they start from)."""
    total: dict[str, Tensor] = {}
    steps: dict[int, dict[str, Tensor]] = {}
    for name, x in held.items():
        if name.startswith(STEP):
            version, tensor = name.removeprefix(STEP).split(".", 1)
            steps.setdefault(int(version), {})[tensor] = x
        else:
            total[name] = x
    return total, steps


def _since(state: State, have: int | None, plan: Plan) -> Tensors:
    """The stacks from `have` on, or the whole sum."""
    total, steps = _parts(state.tensors)
    if have is None or any(v not in steps for v in range(have, state.version)):
        return total
    lacking = {f"{STEP}{v}.{n}": x for v in range(have, state.version) for n, x in steps[v].items()}
    smaller = sum(x.numel() for x in lacking.values()) < sum(x.numel() for x in total.values())
    return lacking if smaller else total


def _catch_up(held: State | None, plan: Plan) -> Tensors:
    total, steps = _parts(plan.tensors)
    if held is None or total:
        return total
    for version in sorted(steps):
        total = _plus(total or held.tensors, steps[version])
    return total or held.tensors


def _restart(handle: Handle, turn: Turn) -> None:
    """W = w0 + the sum; A a fresh draw of this client, B zero: the function is unchanged."""
    pairs, head = lowrank.split(turn.held)
    handle.stand(pairs, key=turn.held_digest)
    handle.write({**SPACE.initial(handle.layout, turn.plan.rank, turn.seed), **head})
