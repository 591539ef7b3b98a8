"""What keys of [privacy] may be: numbers beyond the grid's integers, and keys that nobody would heed, are refused."""

import math
from typing import Any

import pytest

from fedft import run_file
from fedft.errors import ConfigError

SAID = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
MODES = ("central-dp", "local-dp", "example-dp", "zo-dp")


def refused(**keys: Any) -> str:
    with pytest.raises(ConfigError) as e:
        run_file.from_dict({"privacy": {k: v for k, v in {**SAID, **keys}.items() if v is not None}})
    assert "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("clip", 1e-20), ("clip", 1e20), ("clip", math.nan), ("noise_multiplier", 1e9), ("noise_multiplier", math.inf)],
)
def test_noise_that_its_integers_cannot_hold_is_refused(mode: str, key: str, value: float) -> None:
    assert f"[privacy] {key}" in refused(mode=mode, **{key: value})


@pytest.mark.parametrize("mode", ["local-dp", "example-dp", "zo-dp"])
def test_a_server_can_neither_end_nor_measure_what_clients_hide(mode: str) -> None:
    assert "[policy] max_epsilon" in refused(mode=mode, max_epsilon=8.0)
    assert "sites measure nothing" in refused(mode=mode, evaluate="noisy")


def test_rounds_are_those_of_an_epsilon_at_clients() -> None:
    assert "rounds" in refused(mode="example-dp", rounds=3)
    assert "rounds" in refused(mode="central-dp", noise_multiplier=None, epsilon=8.0, rounds=3)
    target = {"mode": "zo-dp", **SAID, "noise_multiplier": None, "epsilon": 8.0, "rounds": 3}
    found = run_file.from_dict({"privacy": {k: v for k, v in target.items() if v is not None}})
    assert found.privacy.rounds == 3
    assert found.privacy.at_clients
