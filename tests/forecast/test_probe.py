"""What a probe measures on this machine, and that it measures what formulas say."""

from pathlib import Path

import pytest

from fedft import run_file, strategies
from fedft.contract import Work
from fedft.errors import ConfigError
from fedft.forecast import probe
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.clients import clients_of
from fedft.forecast.rows import Rows
from fedft.forecast.seconds import Device
from fedft.forecast.work import Forecaster
from fedft.models import load
from fedft.models.layout import layout_of
from fedft.models.skeleton import skeleton


def of(base: Path, strategy: str = "fedit", **local: object) -> Forecaster:
    config = run_file.from_dict(
        {
            "model": {"id": str(base), "dtype": "float32"}, "data": {"max_length": 48},
            "local": {"batch_size": 4, **local}, "strategy": {"name": strategy},
        }
    )  # fmt: skip
    here, recipe = skeleton(config.model), strategies.of(config)
    layout = layout_of(here, [] if recipe.space.of_base else config.model.targets)
    return Forecaster(anatomy_of(here), recipe.space.layout(layout), config, recipe)


def test_a_probe_finds_what_the_formulas_say_and_a_speed(tiny_base: Path) -> None:
    found = probe.measure(of(tiny_base), {"a": Rows()})
    assert found.share == pytest.approx(1, rel=0.1)
    assert found.per_token > 1000
    assert found.flops > 1e6
    assert found.device(Device(up=7.0)) == Device(found.flops, found.overhead, 7.0)


def test_steps_without_gradients_keep_nothing(tiny_base: Path) -> None:
    found = probe.measure(of(tiny_base, "mezo"), {"a": Rows()})
    assert (found.share, found.per_token) == (1, 0)
    assert found.flops > 1e6


def test_what_is_measured_moves_what_is_foreseen(tiny_base: Path) -> None:
    (client,) = clients_of(of(tiny_base), {"a": Rows()})
    twice = probe.Probe(2.0, 1.0, 1e9, 0.0).corrected(client)
    assert client.memory.where == "step"
    assert twice.memory.activations == 2 * client.memory.activations
    assert twice.memory.base == client.memory.base


def test_rows_of_another_form_are_refused(tiny_base: Path) -> None:
    with pytest.raises(ConfigError, match="--probe makes up rows of tokens with labels"):
        probe.measure(of(tiny_base, objective="dpo"), {"a": Rows()})


def test_a_skeleton_is_the_loaded_base(tiny_base: Path) -> None:
    bare = of(tiny_base).anatomy
    assert bare == anatomy_of(load.load(str(tiny_base), "causal-lm"))
    assert of(tiny_base).memory(Work()).base == 4 * bare.parameters
