"""One contract over every built-in strategy and its variants: a new one is tested from its first day."""

from dataclasses import replace
from typing import Any

import pytest

from fedft import run_file
from fedft.aggregation.mean import mean
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.registry import BUILT_IN
from fedft.strategies import load, make, of
from fedft.testing import PROMISES, strategy_contract
from fedft.training.first_order import FirstOrder

SMALL: dict[str, dict[str, Any]] = {"fedkseed": {"K": 64}, "ferret": {"K": 64}}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, SMALL.get(name, {})) for name in BUILT_IN),
    ("fedit", {"padding": "zero"}),
    ("fedkseed", {"K": 64, "pro": True}),
    ("fedkseed", {"K": 64, "space": "lora"}),
    ("fedkseed", {"K": 8, "family": "rademacher"}),
    ("fedkseed", {"K": 64, "weight_decay": 0.1}),
    ("fedkseed", {"K": 64, "variant": "reference"}),
    ("fedkseed", {"K": 64, "sampling": "without_replacement"}),
]

SLOW = {"family": "rademacher"}  # four times as long as others
every_variant = pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(
            n,
            o,
            id="-".join([n, *(f"{k}={v}" for k, v in o.items())]),
            marks=[pytest.mark.slow] * (SLOW.items() <= o.items()),
        )
        for n, o in VARIANTS
    ],
)


@every_variant
@pytest.mark.parametrize("promise", PROMISES)
def test_every_strategy_keeps_its_promises(name, options, promise):
    PROMISES[promise](make(name, options))


@every_variant
def test_a_mean_over_nobody_is_refused(name, options):
    with pytest.raises(ValueError, match=r"none|no items"):
        make(name, options).aggregate(iter([]))


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_declared_follows_from_itself(name):
    """Integers under masks add up only where weighted sums are all the server needs, at equal shapes."""
    recipe = load(name)()
    assert isinstance(recipe, Recipe)
    assert recipe.name == name
    assert not recipe.ring_summable or (recipe.linear and not recipe.unlike_ranks)


def test_the_contract_names_the_promise_that_is_broken():
    """A strategy that adds one to every aggregate moves the model at learning rate zero and is no longer linear."""

    def off_by_one(updates):
        return {n: x + 1 for n, x in mean(updates).items()}

    broken = replace(make("fedit", {}), aggregate=off_by_one)
    with pytest.raises(AssertionError, match="fedit: a learning rate of zero leaves the model bit for bit: "):
        strategy_contract(broken)


def test_the_contract_reports_every_promise_where_it_is_not_stopped():
    def misfit(layout, plan):
        return {}

    results = strategy_contract(replace(make("fedit", {}), upload=misfit, local=FirstOrder(send="value")), stop=False)
    assert results.keys() == PROMISES.keys()
    assert "RejectedUpdate" in results["uploads fit their spec and survive the wire"]
    assert not results["same config and seed, same bytes"]


def test_what_a_strategy_cannot_do_is_refused_when_the_run_file_is_read():
    with pytest.raises(ConfigError, match="fedit needs one rank for all clients, got \\[1, 2\\]"):
        of(run_file.from_dict({"clients": {"rank": [1, 2]}, "strategy": {"name": "fedit"}}))
    with pytest.raises(ConfigError, match="add up what they receive; wanted 'fp32', got 'fp16'"):
        of(run_file.from_dict({"codec": {"down": "fp16"}, "strategy": {"name": "flora"}}))


def test_an_unknown_strategy_or_option_names_the_nearest():
    with pytest.raises(ConfigError, match="flora"):
        load("flroa")
    with pytest.raises(ConfigError, match="padding"):
        make("fedit", {"pading": "zero"})
    with pytest.raises(ConfigError, match="fedkseed"):
        make("fedkseed", {"K": 5000})
