"""The figures of an audit on scores that are made up: known answers, and what holds where nothing leaked."""

import math
import random
from statistics import fmean

import pytest
import torch

from fedft.privacy.audit import contrastive, exposure, gate, lower_bound, membership
from fedft.privacy.audit.canaries import ALTERNATIVES, Canary
from fedft.privacy.audit.exposure import Exposed


def test_exposure_of_the_second_of_eight_is_two_bits() -> None:
    assert exposure.bits(1.0, [0.5, 2, 3, 4, 5, 6, 7]) == 2.0


def test_ties_and_losses_that_are_no_numbers_have_the_worst_rank() -> None:
    assert exposure.bits(1.0, [1.0] * 255) == 0.0
    assert exposure.bits(math.nan, [1.0] * 255) == 0.0
    assert exposure.bits(1.0, [math.nan] * 255) == 0.0


def test_a_secret_that_the_model_knows_nothing_of_is_exposed_by_one_bit_and_a_half() -> None:
    """The mean of log2(256 / rank) over ranks 1 to 256; so it is for losses drawn alike."""
    exact = fmean(math.log2((ALTERNATIVES + 1) / rank) for rank in range(1, ALTERNATIVES + 2))
    assert exact == pytest.approx(1.44, abs=0.03)
    rng = random.Random(1)
    drawn = [exposure.bits(rng.random(), [rng.random() for _ in range(ALTERNATIVES)]) for _ in range(2000)]
    assert fmean(drawn) == pytest.approx(exact, abs=0.1)


def test_auc_of_two_and_two_with_a_tie() -> None:
    assert membership.auc([1, 2], [2, 3]) == 0.875


def test_auc_is_the_share_of_pairs() -> None:
    rng = random.Random(2)
    inside, outside = ([rng.randrange(6) for _ in range(n)] for n in (17, 23))
    pairs = [(a < b) + (a == b) / 2 for a in inside for b in outside]
    assert membership.auc(inside, outside) == pytest.approx(fmean(pairs))


def test_scores_that_are_all_tied_find_nobody() -> None:
    found = membership.figures([0.0] * 100, [0.0] * 100)
    assert found == {"auc": 0.5, "tpr_at_1": 0.0, "tpr_at_5": 0.0}


def test_the_threshold_lets_no_more_false_positives_through_than_its_rate() -> None:
    rng = random.Random(3)
    for rate in (0.01, 0.05, 0.5):
        outside = [rng.randrange(300) for _ in range(200)]
        inside = [rng.randrange(200) for _ in range(200)]
        fine = [t for t in set(outside) if sum(x <= t for x in outside) <= rate * 200]
        assert fine
        assert membership.tpr_at(rate, inside, outside) == fmean(x <= max(fine) for x in inside)


def test_rates_of_few_false_positives_need_a_hundred_rows_of_either_kind() -> None:
    assert set(membership.figures([0.0] * 99, [0.0] * 500)) == {"auc"}
    assert set(membership.figures([0.0] * 500, [0.0] * 99)) == {"auc"}


def test_a_tuned_model_that_is_the_base_has_a_calibrated_auc_of_one_half() -> None:
    """Whatever the losses are."""
    rng = random.Random(4)
    inside, outside = ([rng.random() for _ in range(100)] for _ in range(2))
    found = membership.measured((inside, inside), (outside, outside))
    assert found["calibrated"] == {"auc": 0.5, "tpr_at_1": 0.0, "tpr_at_5": 0.0}
    assert found["loss"]["auc"] != 0.5


def test_seventeen_right_of_twenty_refute_epsilons_below_0_647() -> None:
    assert lower_bound.epsilon_lower(20, 17) == pytest.approx(0.647, abs=5e-4)
    assert lower_bound.epsilon_lower(20, 10) == 0.0
    assert lower_bound.epsilon_lower(0, 0) == 0.0


def test_the_tail_is_the_binomials() -> None:
    for n, p, c in ((20, 0.5, 14), (7, 0.9, 7), (50, 0.1, 0), (3, 1.0, 3)):
        exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(c, n + 1))
        assert lower_bound.tail(n, p, c) == pytest.approx(exact, rel=1e-12)


def told(rng: random.Random, epsilon: float, canaries: int) -> list[Exposed]:
    """Canaries of which a mechanism gives every coin away with probability e^eps / (1 + e^eps), and lies otherwise."""
    found = []
    for number in range(canaries):
        planted = rng.random() < 0.5
        seen = planted if rng.random() < 1 / (1 + math.exp(-epsilon)) else not planted
        canary = Canary(number, "north", 1, planted, "0 0 0 0")
        found.append(Exposed(canary, 8.0 if seen else 0.0, rng.random()))
    return found


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_lower_bound_is_above_the_truth_in_one_run_of_twenty_at_most(epsilon: float) -> None:
    """For the mechanism that gives away the most; and it has power: most runs of a leak of 2 refute 0."""
    bounds = []
    for seed in range(400):
        guesses, right = lower_bound.guessed(told(random.Random(seed), epsilon, 128))
        bounds.append(lower_bound.epsilon_lower(guesses, right))
    assert fmean(b > epsilon for b in bounds) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 400)
    assert fmean(bounds) > epsilon / 4
    assert (fmean(b > 0 for b in bounds) > 0.95) == (epsilon == 2.0)


def test_guesses_never_depend_on_coins() -> None:
    found = told(random.Random(5), 1.0, 40)
    turned = [Exposed(Canary(e.canary.number, "north", 1, not e.canary.planted, ""), e.bits, e.margin) for e in found]
    (guesses, right), (again, wrong) = lower_bound.guessed(found), lower_bound.guessed(turned)
    assert guesses == again == 20
    assert right + wrong == guesses


def test_contrastive_scores_of_the_known_case() -> None:
    p, b = torch.tensor([[0.5, 0.3, 0.15, 0.05]]), torch.tensor([[0.25, 0.3, 0.4, 0.05]])
    found = contrastive.scores(p.log(), b.log(), torch.ones(4, dtype=torch.bool)).softmax(-1)
    assert found.squeeze().tolist() == pytest.approx([2 / 4.375, 1 / 4.375, 0.375 / 4.375, 1 / 4.375], abs=1e-6)


def test_what_is_unlikely_or_special_is_never_written_even_where_a_special_token_is_likeliest() -> None:
    p = torch.tensor([[0.9, 0.05, 0.049, 0.001]])
    allowed = torch.tensor([False, True, True, True])
    found = contrastive.scores(p.log(), torch.full((1, 4), 0.25).log(), allowed)
    assert found.isinf().tolist() == [[True, False, False, True]]


def test_equal_models_score_zero_exactly_and_texts_end_at_the_end() -> None:
    """Ids 0 and 1 are special; 1 is the end."""
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0)) * 2

    def model(ids: torch.Tensor) -> torch.Tensor:
        return table[ids[:, -1]]

    starts = [("first", [0]), ("text", [2, 3]), ("first", [0])]
    tokens = contrastive.Tokens(1, frozenset({0, 1}))
    rng = torch.Generator().manual_seed(1)
    found = contrastive.generate(model, model, starts, tokens, rng, new_tokens=40, batch_size=2)
    assert [(s.start, list(s.given)) for s in found] == starts
    assert [s.score for s in found] == [0.0] * 3
    assert not {0, 1} & {i for s in found for i in s.written}
    assert min(len(s.written) for s in found) < 40


def test_n_grams() -> None:
    assert contrastive.distinct([[1, 2, 3, 4, 5], [1, 2, 3, 4]]) == pytest.approx(2 / 3)
    assert contrastive.occurring([[1, 2, 3], [9, 9]], {(1, 2)}, 2) == pytest.approx(1 / 3)
    assert math.isnan(contrastive.distinct([[1, 2]]))


def test_a_gate_names_each_figure_above_its_bound_and_each_that_is_missing() -> None:
    most = gate.bounds(["exposure=4", "auc=0.6", "epsilon_lower=1"])
    assert gate.broken({"exposure": 4.0, "auc": 0.6, "epsilon_lower": 1.0}, most) == ""
    assert gate.broken({"exposure": 4.5, "auc": 0.61}, most) == (
        "exposure is 4.5, at most 4 is allowed; auc is 0.61, at most 0.6 is allowed; "
        "epsilon_lower could not be measured, at most 1 is allowed"
    )
    assert "could not be measured" in gate.broken({"auc": math.nan}, {"auc": 0.6})


@pytest.mark.parametrize("text", ["exposure", "exposure=", "exposure=nan", "auc=-1", "auc=inf", "loss=1", "=3"])
def test_a_bound_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\[audit\] gate has .* wanted FIGURE=NUMBER"):
        gate.bounds([text])
