"""The pairs (seed number, scalar) of a walk: what a server admits, and what it refuses."""

import math

import pytest
import torch

from fedft.contract import Layout
from fedft.errors import RejectedUpdate
from fedft.strategies.parts.seed_pairs import SeedPairs
from fedft.strategies.parts.seed_pool import SeedPool
from fedft.testing import RUN
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan, Update
from fedft.wire import messages

PLAN = Plan(RUN, 0, 0, steps=10, learning_rate=0.1)


def pairs_of(options) -> SeedPairs:
    return SeedPairs(SeedPool(14, Walk(), **options))


def honest(options) -> dict[str, torch.Tensor]:
    """Six pairs of ten steps at learning rate 0.1 and clip 1000, the largest that is allowed: 10 * 1000 * 0.1."""
    index = torch.tensor([1, 2, 3, 5, 8, 13], dtype=torch.uint16)
    delta = {"index": index, "scalar": torch.tensor([100.0, -200.0, 100.0, 300.0, -100.0, 200.0])}
    if "pro" in options:
        delta["count"] = torch.tensor([1, 2, 1, 3, 1, 2], dtype=torch.uint16)
        delta["magnitude"] = torch.tensor([1000.0, 2000.0, 1000.0, 3000.0, 1000.0, 2000.0])
    if "weight_decay" in options:
        delta["decay"] = torch.tensor([(1 - 0.1 * options["weight_decay"]) ** 10])
    if "no_decay" in options:
        delta["spared"] = delta["scalar"].clone()
    return delta


ALL = {"pro": True, "weight_decay": 0.5, "no_decay": ("bias",)}


@pytest.mark.parametrize("options", [{}, {"pro": True}, {"weight_decay": 0.5}, ALL], ids=str)
def test_the_largest_honest_pool_is_admitted(options):
    delta = honest(options)
    pairs_of(options).admit(delta, PLAN)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("index", [1, 2, 3, 5, 8], "spec_mismatch"),
        ("count", [1, 2, 1, 3, 1], "spec_mismatch"),
        ("index", [1, 2, 3, 5, 8, 14], "seed_out_of_pool"),
        ("index", [1, 2, 3, 5, 8, 65535], "seed_out_of_pool"),
        ("index", [1, 2, 2, 5, 8, 13], "seed_out_of_pool"),
        ("index", [2, 1, 3, 5, 8, 13], "seed_out_of_pool"),
        ("scalar", [100.0, -200.0, 100.0, 300.0, -100.0, 240.0], "scalar_bound"),
        ("scalar", [math.nan] * 6, "scalar_bound"),
        ("spared", [100.0, -200.0, 100.0, 300.0, -100.0, 240.0], "scalar_bound"),
        ("spared", [100.0], "spec_mismatch"),
        ("count", [1, 2, 1, 3, 1, 3], "too_many_steps"),
        ("decay", [0.0], "out_of_bounds"),
        ("decay", [1.5], "out_of_bounds"),
        ("decay", [-0.5], "out_of_bounds"),
        ("decay", [math.nan], "out_of_bounds"),
        ("decay", [0.01], "out_of_bounds"),
        ("magnitude", [1000.0, 2000.0, 1000.0, 3000.0, 1000.0, 9000.0], "scalar_bound"),
        ("magnitude", [-1000.0, 2000.0, 1000.0, 3000.0, 1000.0, 2000.0], "scalar_bound"),
    ],
    ids=str,
)
def test_a_pool_that_honest_steps_cannot_make_is_refused(name, value, code):
    delta = honest(ALL)
    delta[name] = torch.tensor(value, dtype=delta[name].dtype)
    with pytest.raises(RejectedUpdate) as refusal:
        pairs_of(ALL).admit(delta, PLAN)
    assert refusal.value.code == code


def test_more_pairs_than_steps_do_not_fit_the_spec():
    spec = SeedPairs(SeedPool(64, Walk())).spec(Layout(), PLAN)
    delta = {"index": torch.arange(11).to(torch.uint16), "scalar": torch.zeros(11)}
    data = messages.encode_update(Update(delta, 1, run=RUN), "fp32")
    with pytest.raises(RejectedUpdate) as refusal:
        messages.decode_update(data, spec, "fp32")
    assert refusal.value.code == "spec_mismatch"
