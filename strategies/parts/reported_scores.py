"""A method of pairs whose clients also say how much each module contributes: the scores that planners deal ranks by.

    client    after its steps  S' = mean s(A) + mean s(B) of each module that learns (`sensitivity`), mean 1: 4 bytes
    server    S := keep S + (1 - keep) c S', in the drawer of whoever asks; c makes the sum of S' that of S

What the method itself sends, sums and does is as it was; it never sees the scores.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fedft.aggregation.mean import mean
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import Layout, Next, State
from fedft.recipe import Recipe
from fedft.strategies.parts import sensitivity
from fedft.strategies.parts.sensitivity import SCORE, Scores
from fedft.strategies.parts.wrapping import with_term
from fedft.update import Plan, TensorSpec, Update

KEEP = 0.7  # of S in a round


def with_scores(inner: Recipe, config: RunConfig, owner: str) -> Recipe:
    """The recipe whose server keeps scores by module under the name `owner` of its drawers.

    Raises ValueError, in the name of `owner`, where its clients do not send both factors of pairs, or where noise would
    be on the scores, too.
    """
    sent = inner.spec(Layout({"m": (4, 4)}), Plan("", 0, 0, rank=2))
    if not {"m" + A_SUFFIX, "m" + B_SUFFIX} <= sent.keys():
        raise ValueError(f"{owner} scores pairs by both factors, and clients of {inner.name} send no such pairs")
    if config.privacy.on:
        raise ValueError(f"{owner} reads scores as they are, and [privacy] mode changes them; wanted score = 'norm'")

    def upload(layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        spec = dict(inner.spec(layout, plan))
        both = [n.removesuffix(A_SUFFIX) for n in spec if n.endswith(A_SUFFIX)]
        return spec | {SCORE + m: TensorSpec((1,)) for m in both if m + B_SUFFIX in spec}

    def aggregate(updates: Iterable[Update]) -> dict[str, Tensor]:
        scores: list[Update] = []

        def others() -> Iterator[Update]:
            for u in updates:
                scores.append(replace(u, delta={n: x for n, x in u.delta.items() if n.startswith(SCORE)}))
                yield replace(u, delta=_without(u.delta))

        return inner.aggregate(others()) | mean(scores)

    def server(state: State, change: Tensors) -> Next:
        made = inner.server(state, _without(change))
        known, news = (sensitivity.said(x) for x in (state.drawer(owner), change))
        found = sensitivity.renewed(known, news, KEEP) if known else news
        drawer = {SCORE + m: torch.tensor([s], dtype=torch.float64) for m, s in {**known, **found}.items()}
        before = made.own if isinstance(made, Next) else {}
        return Next(made.tensors if isinstance(made, Next) else made, {**before, owner: drawer})

    def admit(delta: Tensors, plan: Plan) -> None:
        sensitivity.check_mean(delta)
        inner.admit(_without(delta), plan)

    return replace(
        with_term(inner, Scores(), owner),
        upload=upload,
        aggregate=aggregate,
        server=server,
        admit=admit,
        norm=lambda delta, plan: inner.norm(_without(delta), plan),
        linear=False,
        ring_summable=False,
        takes_stale=False,
        cuts_to_rank=inner.cuts_the_state,
    )


def _without(x: Tensors) -> dict[str, Tensor]:
    return {n: t for n, t in x.items() if not n.startswith(SCORE)}
