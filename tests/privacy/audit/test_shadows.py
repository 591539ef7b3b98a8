"""Membership inference with shadow runs on losses that are made up: known answers, and what chance finds."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from fedft.privacy.audit import shadows
from fedft.privacy.audit.shadows import Tried


def losses_of(phi: Tensor) -> Tensor:
    """Losses whose log(p / (1 - p)) is phi."""
    return softplus(-phi)


def test_each_record_is_in_half_of_the_runs_by_its_own_draw() -> None:
    inside = shadows.dealt(400, 8, seed=3)
    assert (inside.sum(1) == 4).all()
    assert inside.sum(0).sub(200).abs().max() < 50
    assert len({tuple(row) for row in inside.tolist()}) > 60  # of 70 that there are
    assert (shadows.dealt(9, 5, seed=3).sum(1) == 2).all()
    assert torch.equal(inside, shadows.dealt(400, 8, seed=3))
    assert not torch.equal(inside, shadows.dealt(400, 8, seed=4))


def test_one_record_between_two_gaussians() -> None:
    """Inside 1 and 3, outside -1 and -3: both spreads are sqrt(2), and at 2 the ratio is exp(4^2 / 4)."""
    losses = losses_of(torch.tensor([[1.0, 3, -1, -3]], dtype=torch.float64))
    inside = torch.tensor([[True, True, False, False]])
    at = [float(losses_of(torch.tensor(x, dtype=torch.float64))) for x in (2.0, 0.0, -2.0)]
    found = [shadows.scores([loss], losses, inside)[0] for loss in at]
    assert found == pytest.approx([4.0, 0.0, -4.0])


def test_losses_that_are_0_or_no_number_have_finite_scores() -> None:
    losses = torch.tensor([[0.0, 1.0, math.nan, math.inf], [1.0, 2.0, 3.0, 4.0]])
    inside = torch.tensor([[True, True, False, False]] * 2)
    assert all(map(math.isfinite, shadows.scores([0.0, math.nan], losses, inside)))


def test_runs_that_do_not_differ_find_nothing() -> None:
    tried = [Tried(n % 2 == 0, repeats) for repeats in (0, 16) for n in range(20)]
    losses = torch.rand(40, 1, generator=torch.Generator().manual_seed(1)).repeat(1, 8)
    said = shadows.measured(tried, losses[:, 0].tolist(), losses, shadows.dealt(40, 8, 0))
    assert said["rows"]["auc"] == 0.5
    (group,) = said["canaries"]
    assert (group["found"], group["found_left_out"]) == (0.0, 0.0)


def _attack(effect: float, seed: int) -> dict[str, object]:
    """400 rows and 16 canaries of unlike difficulty; `effect` is what training on one adds to its phi, in spreads."""
    generator = torch.Generator().manual_seed(seed)
    tried = [Tried(n % 2 == 0, 0 if n < 400 else 16) for n in range(416)]
    inside = shadows.dealt(416, 8, seed)
    member = torch.tensor([[t.member] for t in tried])
    noise = torch.randn(416, 9, generator=generator) + 5 * torch.randn(416, 1, generator=generator)
    losses = losses_of(noise + effect * torch.cat([member, inside], 1))
    return shadows.measured(tried, losses[:, 0].tolist(), losses[:, 1:], inside)


def test_what_training_shows_in_a_record_is_found_though_records_differ_more() -> None:
    """By loss alone nothing could be told: records differ by five times what training on one does to it."""
    said = _attack(effect=4.0, seed=1)
    assert said["rows"]["auc"] > 0.95  # type: ignore[index]
    assert said["rows"]["tpr_at_1"] > 0.5  # type: ignore[index]
    (group,) = said["canaries"]  # type: ignore[misc]
    assert group["found"] >= 0.9
    assert group["found_left_out"] <= 0.1


def test_what_training_does_not_show_is_found_by_chance_only() -> None:
    said = [_attack(effect=0.0, seed=seed) for seed in range(5)]
    aucs = [s["rows"]["auc"] for s in said]  # type: ignore[index]
    assert sum(aucs) / 5 == pytest.approx(0.5, abs=0.03)
    assert all(abs(s["canaries"][0]["found"] - s["canaries"][0]["found_left_out"]) < 0.7 for s in said)  # type: ignore[index]
