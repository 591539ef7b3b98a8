"""Noise of a client on its whole update: what it amounts to, on a grid, and which strategies can have it."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from client_turns import turn_of

from fedft import run_file, strategies
from fedft.contract import Private, Trained, Turn
from fedft.errors import ConfigError, RejectedUpdate
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.site_noise import SiteNoise
from fedft.update import Plan

KEY = bytes(range(32))


def noised(delta: dict[str, torch.Tensor], *, clip: float = 1.0, z: float = 0.0, salt: str = "", **more: Any) -> Any:
    stream = Stream(KEY, hashlib.sha256(salt.encode()).digest())
    turn: Turn = replace(turn_of(0), private=Private(clip, z, stream))
    return SiteNoise(**more).apply(Trained(delta, {"steps": 3.0}), turn, None).delta  # type: ignore[arg-type]


def test_without_noise_it_is_the_clip_of_all_tensors_as_one_vector() -> None:
    """(3, 4) and (12): norm 13, to 6.5; what is shorter stays as it is."""
    found = noised({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[12.0]])}, clip=6.5)
    assert torch.allclose(found["a"], torch.tensor([1.5, 2.0]), atol=1e-7)
    assert torch.allclose(found["b"], torch.tensor([[6.0]]), atol=1e-7)
    short = {"a": torch.tensor([0.3, -0.4])}
    assert torch.allclose(noised(short)["a"], short["a"], atol=1e-9)
    assert found["a"].dtype == torch.float32


def test_noise_has_the_deviation_z_c_and_is_the_same_again() -> None:
    delta = {"w": torch.zeros(200_000)}
    found = noised(delta, clip=0.5, z=2.0)["w"].double()
    assert float(found.std()) == pytest.approx(1.0, rel=0.01)
    assert abs(float(found.mean())) < 0.01
    assert torch.equal(noised(delta, clip=0.5, z=2.0)["w"].double(), found)
    other = noised(delta, clip=0.5, z=2.0, salt="another turn")["w"].double()
    assert abs(float(torch.corrcoef(torch.stack([found, other]))[0, 1])) < 0.01


def test_tensors_have_noise_of_their_own() -> None:
    found = noised({n: torch.zeros(1000) for n in "ab"}, z=1.0)
    assert abs(float(torch.corrcoef(torch.stack([found["a"], found["b"]]))[0, 1])) < 0.1


def test_zeros_and_numbers_that_are_none_have_noise_and_nothing_else() -> None:
    """A refusal, or an update without noise, would tell of the rows."""
    alike = [torch.zeros(3), torch.tensor([1.0, math.nan, 2.0]), torch.tensor([math.inf, 0.0, 1.0])]
    found = [noised({"w": x}, z=1.0)["w"] for x in alike]
    assert all(torch.equal(x, found[0]) for x in found)
    assert bool(found[0].all())


def test_integers_are_refused_unless_they_only_say_places() -> None:
    delta = {"scalar": torch.tensor([1.0]), "index": torch.tensor([5], dtype=torch.uint16)}
    with pytest.raises(ValueError, match="index is not of floats: nothing hides what it tells"):
        noised(delta)
    assert noised(delta, integers=True, z=1.0)["index"] is delta["index"]


def test_a_turn_without_a_key_sends_nothing() -> None:
    with pytest.raises(RuntimeError, match="without noise"):
        SiteNoise().apply(Trained({}, {}), turn_of(0), None)  # type: ignore[arg-type]


def config_of(name: str, **tables: Any) -> Any:
    private = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-3}
    return run_file.from_dict({"strategy": {"name": name}, "clients": {"rank": 4}, "privacy": private, **tables})


@pytest.mark.parametrize("name", ["ffa_lora", "fedit", "rolora", "fedsa_lora", "fedkseed", "zo_fedavg", "fedavg"])
def test_strategies_that_sum_have_it_before_the_codec(name: str) -> None:
    config = config_of(name, **({} if name == "fedkseed" else {"codec": {"up": "int4", "error_feedback": True}}))
    stages = [t.stage for t in strategies.of(config).uploads]
    assert stages.count("noise") == 1
    assert stages[-1:] == (["noise"] if name == "fedkseed" else ["code"])


def test_noise_beyond_what_steps_reach_is_admitted_and_a_place_outside_the_pool_is_not() -> None:
    recipe = strategies.of(config_of("fedkseed"))
    plan = Plan("0" * 16, 0, 0, steps=2, learning_rate=1e-5)
    sent = noised({"scalar": torch.zeros(2), "index": torch.tensor([3, 5], dtype=torch.uint16)}, integers=True, z=2.0)
    with pytest.raises(RejectedUpdate, match="scalars"):
        strategies.make("fedkseed", {}).admit(sent, plan)
    recipe.admit(sent, plan)
    with pytest.raises(RejectedUpdate, match="seed numbers"):
        recipe.admit(sent | {"index": torch.tensor([5, 3], dtype=torch.uint16)}, plan)


@pytest.mark.parametrize("name", ["flora", "flexlora", "fedex_lora", "hetlora", "flasc", "mezo", "scaffold"])
def test_others_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\[privacy\] mode = 'local-dp'"):
        strategies.of(config_of(name))


def test_little_noise_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    little = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 0.3, "delta": 1e-3}
    strategies.of(config_of("fedit", privacy=little))
    assert "noise_multiplier = 0.3: below 0.5" in caplog.text
    caplog.clear()
    strategies.of(config_of("fedit"))
    assert not caplog.text


def test_steps_by_rows_are_refused_where_rows_are_hidden() -> None:
    with pytest.raises(ConfigError, match=r"\[local\] epochs = 1.0 and \[privacy\] mode = 'local-dp'"):
        strategies.of(config_of("fedit", local={"epochs": 1.0}))
