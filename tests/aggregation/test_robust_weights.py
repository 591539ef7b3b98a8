"""Weights that dishonest clients cannot choose: known answers, six attacks, and what honesty costs."""

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from fedft.aggregation import gram, robust_weights
from fedft.aggregation.robust_weights import Weighed
from fedft.arithmetic.lowrank import LowRank

OUT, IN, R, N = 24, 20, 4, 20
ATTACKS = ("sign flip", "scale", "tiny B, huge A", "little is enough", "colluding copies", "zero")


def of_scalars(*x: float) -> Tensor:
    column = torch.tensor(x, dtype=torch.float64)[:, None]
    return column @ column.T


def test_multi_krum_of_the_sheet():
    """Scalars 0, 1, 1.1, 0.9, 10 with f = 1: each score sums two neighbours, 0's are 0.81 + 1."""
    found = robust_weights.multi_krum(of_scalars(0, 1, 1.1, 0.9, 10), f=1)
    assert found.scores.tolist() == pytest.approx([1.81, 0.02, 0.05, 0.05, 160.21])
    assert found.weights.tolist() == [0.25, 0.25, 0.25, 0.25, 0.0]


def test_equal_scores_are_settled_by_the_roster():
    assert robust_weights.multi_krum(of_scalars(1, 1, 1, 1, 1), f=1).weights.tolist() == [0.25] * 4 + [0.0]


@pytest.mark.parametrize(("n", "f"), [(2, 0), (4, 1), (6, 2), (5, -1)])
def test_multi_krum_refuses_more_dishonest_clients_than_it_stands(n, f):
    with pytest.raises(ValueError, match=rf"{n} updates, and \[robust\] f = {f} needs"):
        robust_weights.multi_krum(of_scalars(*range(n)), f)
    assert robust_weights.most_dishonest(n) < f or f < 0


def test_norm_clip_shortens_what_is_longer_than_the_median():
    found = robust_weights.norm_clip(of_scalars(0, 1, 2, 4, -8))
    assert found.weights.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.1, 0.05])
    assert found.scores.tolist() == pytest.approx([0, 1, 2, 4, 8])


def test_the_geometric_median_of_points_on_a_line_is_their_median():
    x = (0.0, 1.0, 1.1, 0.9, 10.0)
    w = robust_weights.geometric_median(of_scalars(*x)).weights
    assert float(w.sum()) == pytest.approx(1)
    assert float(w @ torch.tensor(x, dtype=torch.float64)) == pytest.approx(1.0, abs=1e-3)


def test_where_most_changes_are_zero_so_is_the_geometric_median():
    x = torch.tensor([0.0, 0.0, 0.0, 0.5, -1e4], dtype=torch.float64)
    w = robust_weights.geometric_median(of_scalars(*x.tolist())).weights
    assert float(w.sum()) == pytest.approx(1)
    assert abs(float(w @ x)) < 1e-3
    assert robust_weights.geometric_median(of_scalars(0, 0, 0)).weights.tolist() == pytest.approx([1 / 3] * 3)


def test_fltrust_turns_nobody_s_back_to_the_root_and_nobody_s_length_counts():
    """Root 1: of 2, 0.5 and -3 the last points away, the others count as 1 each."""
    found = robust_weights.fltrust(of_scalars(2, 0.5, -3, 1))
    assert found.weights.tolist() == pytest.approx([0.25, 1.0, 0.0])
    assert found.scores.tolist() == pytest.approx([1, 1, -1])
    assert robust_weights.fltrust(of_scalars(2, 0.5, -3, 1), grow=False).weights.tolist() == pytest.approx(
        [0.25, 0.5, 0]
    )
    assert not robust_weights.fltrust(of_scalars(-1, 0, 1)).weights.any()


def attacked(kind: str, f: int, seed: int, noise: float = 0.2) -> tuple[list[LowRank], Tensor]:
    """(changes of N clients of whom the last f are dishonest, the change that honest ones scatter around)."""
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(R, IN, generator=g), torch.randn(OUT, R, generator=g)
    honest = [
        LowRank(a + noise * torch.randn(R, IN, generator=g), b + noise * torch.randn(OUT, R, generator=g))
        for _ in range(N - f)
    ]
    dense = torch.stack([d.double().dense() for d in honest])
    mean, spread = dense.mean(0), dense.std(0)
    lies: dict[str, Tensor] = {
        "sign flip": -6 * mean,
        "little is enough": mean - NormalDist().inv_cdf((N - f - (N // 2 + 1 - f)) / (N - f)) * spread,
        "colluding copies": torch.randn(OUT, IN, generator=g, dtype=torch.float64)
        * float(mean.norm())
        / (OUT * IN) ** 0.5,
        "zero": torch.zeros(OUT, IN, dtype=torch.float64),
    }
    if kind in lies:
        bad = [LowRank(torch.eye(IN, dtype=torch.float64), lies[kind])] * f
    elif kind == "scale":
        bad = [LowRank(d.A, 100 * d.B) for d in honest[:f]]
    else:
        bad = [
            LowRank(1e4 * torch.randn(R, IN, generator=g), 1e-3 * torch.randn(OUT, R, generator=g)) for _ in range(f)
        ]
    return honest + bad, b.double() @ a.double()


def error(weights: Tensor, changes: list[LowRank], true: Tensor) -> float:
    total = sum(float(w) * d.double().dense() for w, d in zip(weights, changes, strict=True))
    return float((total - true).norm())


def worst(rule, kind: str, f: int) -> float:
    """The largest error of a rule over some draws, in units of the error of the honest clients' mean."""
    found = []
    for seed in range(3):
        changes, true = attacked(kind, f, seed)
        weighed: Weighed = rule(gram.of_pairs([lambda d=d: d for d in changes]), f)
        alone = torch.tensor([1.0] * (N - f) + [0.0] * f, dtype=torch.float64) / (N - f)
        found.append(error(weighed.weights, changes, true) / error(alone, changes, true))
    return max(found)


@pytest.mark.parametrize("f", [0, 2, 4, 6])
@pytest.mark.parametrize("kind", ATTACKS)
def test_under_every_attack_multi_krum_errs_at_most_half_as_much_again_as_the_honest_mean(kind, f):
    assert worst(robust_weights.multi_krum, kind, f) <= 1.5
    if f == 6 and kind not in ("little is enough", "zero"):
        assert (
            worst(lambda h, _: Weighed(torch.full((N,), 1 / N, dtype=h.dtype), h[0]), kind, f) > 5
        )  # it was an attack


@pytest.mark.parametrize("f", [0, 2, 4, 6])
@pytest.mark.parametrize("kind", ATTACKS)
def test_the_geometric_median_errs_more_with_every_dishonest_client_but_boundedly(kind, f):
    """It does not leave anybody out: 1.2, 1.7 and 2.4 times the honest error at 10, 20 and 30 %."""
    assert worst(lambda h, _: robust_weights.geometric_median(h), kind, f) <= {0: 1.05, 2: 1.3, 4: 1.75, 6: 2.5}[f]


@pytest.mark.parametrize("f", [0, 2, 4, 6])
def test_norm_clip_stands_changes_that_are_too_large(f):
    assert worst(lambda h, _: robust_weights.norm_clip(h), "scale", f) <= 1.5


@pytest.mark.parametrize(("f", "most"), [(0, 1.0001), (2, 1.15), (robust_weights.most_dishonest(N), 1.6)])
def test_what_multi_krum_costs_where_all_are_honest_grows_with_the_f_that_it_is_told(f, most):
    """Those that it leaves out are lost, and those that it keeps are near each other rather than around the truth."""
    assert worst(lambda h, _: robust_weights.multi_krum(h, f), "zero", 0) <= most
