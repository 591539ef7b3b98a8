"""The upper part of the model learns, as much of it as a share of a round's operations pays for.

Back-propagation ends at the lowest module that learns, so what a choice costs depends on that one most of all:

    for each layer l, the lowest that may learn:   modules of the layers from l on, as many as fit, the furthest moved
                                                   per operation first
    of these choices:                              the one that has moved furthest in all, sqrt(sum |B_m A_m|^2)

within `share` of the operations of a round in which all learn (`Roster.forecast`). Every client has its own batches and
steps, so its own choice. While nothing has moved, every module counts alike. That tensors are chosen for their
importance by a budget of FLOPs, with a search over how deep back-propagation goes, is GreenTrainer's idea; its
importance is the loss that a tensor's own step gains.

Huang, Zhuang, Sun, Gao, "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation", ICLR
2024, arXiv:2309.13192.
"""

from collections.abc import Callable, Mapping, Sequence

from fedft import check
from fedft.contract import Planner, Roster, State, Work
from fedft.server.planners.modules import moved
from fedft.training.layers import layer_of
from fedft.update import Shape


def flops_budget(*, share: float = 0.6) -> Planner:
    """A planner by which as many modules learn as `share` of a round's operations pays for; at least one does."""
    check.above(0, share=share)
    check.between(0, 1, share=share)

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        distances = moved(state)
        if not any(distances.values()):
            distances = dict.fromkeys(distances, 1.0)
        worth = {m: x**2 for m, x in distances.items()}
        by_rank = {rank: _chosen(worth, rank, share, roster) for rank in {m.rank for m in roster.values()}}
        return {c: Work(Shape(m.rank, chosen=by_rank[m.rank])) for c, m in roster.items() if by_rank[m.rank]}

    plan.unlike_modules = True  # type: ignore[attr-defined]
    return plan


def _chosen(worth: Mapping[str, float], rank: int, share: float, roster: Roster) -> tuple[str, ...]:
    """The modules that learn within the share; none named where all do."""

    def flops(modules: Sequence[str]) -> float:
        return roster.forecast(Work(Shape(rank, chosen=tuple(modules)))).flops

    limit = share * flops(())
    if flops(tuple(worth)) <= limit:
        return ()
    layers = {m: (layer_of(m) or ("", -1))[1] for m in worth}  # what is in no layer may lie below all of them
    best: tuple[float, list[str]] = 0.0, [max(worth, key=lambda m: (layers[m], worth[m]))]
    for lowest in sorted(set(layers.values()), reverse=True):
        above = sorted((m for m in worth if layers[m] >= lowest), key=lambda m: (-worth[m], m.encode()))
        taken = _most_that_fit(above, flops, limit)
        if taken and (value := sum(worth[m] for m in taken)) > best[0]:
            best = value, taken
        if not taken:
            break
    return tuple(sorted(best[1], key=str.encode))


def _most_that_fit(modules: Sequence[str], flops: Callable[[Sequence[str]], float], limit: float) -> list[str]:
    """The longest beginning of `modules` whose round is within the limit, by bisection: more never cost less."""
    low, high = 0, len(modules)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if flops(modules[:middle]) <= limit else (low, middle - 1)
    return list(modules[:low])
