"""When slices go in a turn, and what a turn of a client leaves behind."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from fedft.pruning.kept import everything
from fedft.strategies.fedspine import fedspine
from fedft.strategies.parts.prune_and_train import INTERVAL, due
from fedft.strategies.parts.pruned_clients import KEPT, OWNER, kept_of
from fedft.strategies.parts.ratio_and_rank import AFTER, BEFORE, RATIO
from fedft.testing import Ready, data_of, toy


@pytest.mark.parametrize("steps", [1, 5, 20, 100, 1000])
@pytest.mark.parametrize("slices", [0, 1, 3, 40])
@pytest.mark.parametrize("warm", [0, 4, 20])
def test_every_slice_has_its_step_and_leaves_steps_to_repair_where_there_are_any(steps, slices, warm):
    found = due(steps, slices, warm)
    assert len(found) == (slices if steps > warm else 0)
    assert found == sorted(found)
    assert all(warm <= at < steps for at in found)
    apart = {b - a for a, b in pairwise(found)}
    assert all(gap <= INTERVAL for gap in apart)
    if slices and steps - warm >= slices * INTERVAL:
        assert apart <= {INTERVAL}
        assert steps - found[-1] >= INTERVAL


def test_by_hand():
    assert (due(100, 3, 20), due(8, 3, 2), due(2, 3, 0)) == ([20, 40, 60], [2, 4, 6], [0, 1, 1])


@pytest.mark.parametrize("mode", ["mask", "slice"])
def test_a_turn_prunes_up_to_its_ratio_and_says_and_keeps_what_is_left(mode):
    t = toy(fedspine(variant="fixed", most=0.4, mode=mode))
    state = t.step(t.state(), [t.update(t.state(), k, steps=20) for k in range(3)])
    plan, sent = t.plan(state, 1, steps=20), t.update(state, 1, steps=20)
    groups = t.layout.groups
    assert groups is not None
    left = kept_of(groups, sent.delta[KEPT])
    assert left.bits.tolist() == kept_of(groups, t.kept[1, 1][OWNER][KEPT]).bits.tolist()
    assert left <= everything(groups)
    assert float(plan.extra[RATIO]) <= left.ratio < float(plan.extra[RATIO]) + 1 / 6
    assert sent.metrics["sparsity"] == left.ratio
    assert sent.metrics["parameters"] == 12 * int(left.bits.sum()) + 2 * (8 + 4) + 2 * 2 * int(left.bits.sum())
    assert sent.metrics[AFTER] < sent.metrics[BEFORE]
    for name, pruned in (
        ("first.lora_B", sent.delta["first.lora_B"]),
        ("second.lora_A", sent.delta["second.lora_A"].T),
    ):
        assert not pruned[~left.bits].any(), name
        assert torch.all(pruned[left.bits].any(dim=1)), name


def test_a_ratio_that_no_server_of_ours_says_ends_with_the_model_that_stays():
    """1e12 would be 5e13 slices, each of them put down before the first step."""
    t = toy(fedspine(variant="fixed", most=0.4))
    state = t.step(t.state(), [t.update(t.state(), k, steps=20) for k in range(3)])
    plan = t.plan(state, 1, steps=20)
    turn = t.turn(replace(plan, extra={**plan.extra, RATIO: 1e12}), 1)
    trained = t.recipe.local(t.handle, Ready(data_of(1)), turn)
    assert 0 < trained.metrics["sparsity"] < 1
