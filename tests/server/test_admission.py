"""What a client's bytes must be to count: each refusal by its code, and limits on one client's weight."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedft import strategies, testing
from fedft.config import Limits
from fedft.errors import RejectedUpdate
from fedft.server import admission
from fedft.update import Plan, Update
from fedft.wire import messages

TOY = testing.toy(strategies.make("fedit", {}))
STATE = TOY.state()
PLAN = replace(TOY.plan(STATE, 0), round=5, attempt=1)
GOOD = replace(TOY.update(STATE, 0), round=5, attempt=1)


def admitted(update: Update, limits: Limits | None = None, norms: tuple[float, ...] = ()) -> tuple[Update, float]:
    payload = messages.encode_update(update, "fp32")
    return admission.admit(payload, "anna", PLAN, TOY.recipe, TOY.layout, "fp32", limits or Limits(), norms)


def test_a_good_update_counts_under_the_name_of_who_sent_it() -> None:
    update, norm = admitted(replace(GOOD, client="somebody else"))
    assert update.client == "anna"
    assert norm == pytest.approx(float(torch.cat([x.flatten() for x in GOOD.delta.values()]).norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("wrong_run", {"run": "f" * 16}),
        ("late", {"round": 4}),
        ("wrong_round", {"round": 6}),
        ("late", {"attempt": 0}),
        ("weight", {"num_examples": 1_000_001}),
        ("out_of_bounds", {"delta": {n: x * 0 + 2e4 for n, x in GOOD.delta.items()}}),
        ("spec_mismatch", {"delta": {}}),
    ],
)
def test_what_does_not_belong_to_the_open_round_is_refused_by_code(code: str, change: Mapping[str, Any]) -> None:
    with pytest.raises(RejectedUpdate) as e:
        admitted(replace(GOOD, **change))
    assert e.value.code == code


def test_a_norm_far_above_the_usual_is_refused_and_the_first_round_is_not_bounded() -> None:
    _, norm = admitted(GOOD)
    admitted(GOOD, norms=(norm / 99,) * 3)
    with pytest.raises(RejectedUpdate) as e:
        admitted(GOOD, norms=(norm / 101,) * 3)
    assert e.value.code == "norm"
    with pytest.raises(RejectedUpdate):
        admitted(GOOD, Limits(max_norm=norm * 0.9))


def test_rounds_that_only_measure_neither_lift_the_bound_nor_lower_it() -> None:
    """FedPipe's probes have norm 0: behind five of them two real norms are what is usual, not their median of 0."""
    _, norm = admitted(GOOD)
    admitted(GOOD, norms=(0.0,) * 5)
    admitted(GOOD, norms=(*(0.0,) * 5, norm / 99, norm / 99))
    with pytest.raises(RejectedUpdate):
        admitted(GOOD, norms=(*(0.0,) * 5, norm / 101, norm / 101))


def test_pairs_that_are_whole_changes_are_measured_by_their_product() -> None:
    """A = (3, 4), B = 2: |BA| = 10, whatever the factors' own norms are."""
    recipe = strategies.make("flora", {})
    for c in (1.0, 100.0):
        pair = {"m.lora_A": torch.tensor([[3.0, 4.0]]) / c, "m.lora_B": torch.tensor([[2.0]]) * c}
        assert recipe.norm(pair, Plan("", 0, 0)) == pytest.approx(10.0)


def test_the_share_of_a_client_whose_weight_was_cut_is_told_before_and_after() -> None:
    examples = {"a": 90, "b": 6, "c": 4, "late": 1000}  # who is not among the weights counts in no share
    assert admission.cut_shares(examples, {"a": 10, "b": 6, "c": 4}) == {"a": [0.9, 0.5]}
    assert admission.cut_shares(examples, {"a": 90, "b": 6, "c": 4}) == {}


def test_one_clients_share_is_cut_to_the_limit_among_three_or_more() -> None:
    assert admission.capped({"a": 90, "b": 6, "c": 4}, 0.5) == {"a": 10, "b": 6, "c": 4}
    assert admission.capped({"a": 90, "b": 10}, 0.5) == {"a": 90, "b": 10}
    assert admission.capped({"a": 90, "b": 6, "c": 4}, 1.0) == {"a": 90, "b": 6, "c": 4}
    assert admission.capped({"a": 5, "b": 6, "c": 4}, 0.5) == {"a": 5, "b": 6, "c": 4}
