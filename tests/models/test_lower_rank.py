"""`fedft export --rank N`: the error is the tail of the singular values; at the adapter's own rank there is none."""

import pytest
import torch

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.errors import ConfigError
from fedft.models import lower_rank


def drawn(o: int, i: int, rank: int, seed: int) -> LowRank:
    """Factors whose product has quickly falling singular values."""
    rng = torch.Generator().manual_seed(seed)
    falling = 0.7 ** torch.arange(rank)
    return LowRank(falling[:, None] * torch.randn(rank, i, generator=rng), torch.randn(o, rank, generator=rng))


PAIRS = {"a": drawn(40, 30, 12, 0), "b": drawn(24, 50, 9, 1), "c": 1e-4 * drawn(16, 16, 3, 2)}


@pytest.mark.parametrize("rank", [1, 4, 9, 11])
def test_the_error_is_the_tail_of_the_singular_values_and_that_of_what_is_written(rank: int) -> None:
    """Against torch's own decomposition of the matrix multiplied out, and against the approximation's distance."""
    found, facts = lower_rank.lowered(PAIRS, rank)
    lost = whole = 0.0
    for m, d in PAIRS.items():
        dense = d.double().dense()
        squares = torch.linalg.svdvals(dense) ** 2
        wanted = float((squares[rank:].sum() / squares.sum()).sqrt())
        assert facts["errors"][m] == pytest.approx(wanted, abs=1e-6)
        distance = (found[m].double().dense() - dense).norm() / dense.norm()
        assert float(distance) == pytest.approx(wanted, abs=1e-6)
        assert found[m].rank == rank
        lost, whole = lost + float(squares[rank:].sum()), whole + float(squares.sum())
    assert facts["error"] == pytest.approx((lost / whole) ** 0.5, abs=1e-6)
    assert facts["errors"]["a"] > 1e-3, "or nothing was cut"
    assert (facts["rank"], facts["from"]) == (rank, 12)


def test_a_sum_of_many_that_has_a_lower_rank_loses_nothing() -> None:
    """Factors side by side, as FLoRA's grow: 36 rows, of a matrix of rank 12."""
    d = PAIRS["a"]
    stacked = {"a": 0.5 * d + 0.25 * d + 0.25 * d}
    found, facts = lower_rank.lowered(stacked, 12)
    assert (facts["from"], found["a"].rank) == (36, 12)
    assert facts["error"] < 1e-6
    torch.testing.assert_close(found["a"].dense(), d.dense(), atol=1e-5, rtol=1e-5)


def test_a_change_that_is_zero_has_no_error_and_the_wanted_rank() -> None:
    nothing = lowrank.pad(lowrank.zero(6, 5), 2)
    found, facts = lower_rank.lowered({"a": PAIRS["a"], "zero": nothing}, 2)
    assert facts["errors"]["zero"] == 0.0
    assert (found["zero"].rank, found["zero"].dense().count_nonzero()) == (2, 0)
    assert lower_rank.lowered({"zero": nothing}, 1)[1]["error"] == 0.0


@pytest.mark.parametrize("rank", [0, -3, 13])
def test_a_rank_that_there_is_not_is_refused_in_one_line(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"--rank {rank}: wanted 1 to 12, which is the adapter's rank") as e:
        lower_rank.lowered(PAIRS, rank)
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match="wanted 1 to 0"):
        lower_rank.lowered({}, 1)


def test_the_sentence_names_the_worst_module() -> None:
    said = lower_rank.sentence({"rank": 2, "from": 12, "error": 0.0312, "errors": {"a": 0.02, "b": 0.121}})
    assert said == "the best of rank 2 of an adapter of rank 12: relative error 0.031 over all, 0.12 at most (b)"
