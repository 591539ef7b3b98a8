"""Which groups go next."""

from itertools import pairwise

import pytest
import torch
from prunable_models import every_prunable, prunable, some

from fedft.pruning.groups import Groups, Structure, groups_of
from fedft.pruning.kept import Kept, everything
from fedft.pruning.schedule import fewest, largest_ratio, next_kept

TEN = Groups((Structure("a", 10, (), (), 1), Structure("b", 10, (), (), 1)))


def _all_steps(kept: Kept, importance: torch.Tensor, ratio: float, **how: float) -> list[Kept]:
    steps = [kept]
    while steps[-1].ratio < ratio and (then := next_kept(steps[-1], importance, ratio, **how)) != steps[-1]:
        steps.append(then)
    return steps


def test_the_least_important_go_first_and_equal_ones_in_order() -> None:
    importance = torch.tensor([5.0, 1, 1, 5, 5, 5, 5, 5, 5, 5, 5, 1, 0, 5, 5, 5, 5, 5, 5, 5])
    orders = [k.bits for k in _all_steps(everything(TEN), importance, 0.2, share=0.05)]
    went = [int((b & ~a).nonzero()) for a, b in zip(orders[1:], orders, strict=False)]
    assert went == [12, 1, 2, 11]


@every_prunable
def test_the_ratio_is_hit_within_one_group_in_steps_of_the_share(name: str) -> None:
    groups = groups_of(prunable(name))
    importance = torch.rand(groups.size, generator=torch.Generator().manual_seed(1))
    largest, total = int(groups.weights.max()), int(groups.weights.sum())
    for ratio in (0.1, 0.33, 0.6):
        steps = _all_steps(everything(groups), importance, ratio)
        assert ratio <= steps[-1].ratio + 1e-12 < ratio + largest / total
        for before, after in pairwise(steps):
            assert after <= before
            gone = (before.bits & ~after.bits).sum()
            assert after.ratio - before.ratio <= 0.02 + 1e-12 or gone == 1
        assert all(
            kept >= fewest(s.size, 0.75) for kept, s in zip(steps[-1].counts().values(), groups.structures, strict=True)
        )


def test_a_cap_and_the_last_group_hold_whatever_the_importance() -> None:
    importance = torch.arange(20.0)
    last = _all_steps(everything(TEN), importance, 1.0, cap=0.45)[-1]
    assert last.counts() == {"a": 6, "b": 6}
    assert last.ratio == pytest.approx(largest_ratio(TEN, 0.45))
    assert next_kept(last, importance, 1.0, cap=0.45) is last
    assert _all_steps(everything(TEN), importance, 1.0, cap=1.0)[-1].counts() == {"a": 1, "b": 1}


@every_prunable
def test_uniform_layers_keep_as_many_groups_as_each_other_and_the_most_important(name: str) -> None:
    groups = groups_of(prunable(name))
    importance = torch.rand(groups.size, generator=torch.Generator().manual_seed(2))
    steps = _all_steps(everything(groups), importance, 0.5, uniform=True)
    layers = len(groups.structures) // 2
    assert len(steps) > 5
    assert 0.5 <= steps[-1].ratio < 0.5 + layers * int(groups.weights.max()) / int(groups.weights.sum())
    for kept in steps:
        counts = [*kept.counts().values()]
        assert counts == counts[:2] * layers
        for _, place in groups.each():
            lost = importance[place][~kept.bits[place]]
            assert not len(lost) or lost.max() < importance[place][kept.bits[place]].min()


def test_at_the_ratio_nothing_goes() -> None:
    kept = some(TEN, 3)
    assert next_kept(kept, torch.zeros(20), kept.ratio) is kept
    assert next_kept(kept, torch.zeros(20), 0.0) is kept


def test_an_importance_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="no number"):
        next_kept(everything(TEN), torch.full((20,), torch.nan), 0.5)
    with pytest.raises(ValueError, match="expected 20 numbers"):
        next_kept(everything(TEN), torch.zeros(3), 0.5)
