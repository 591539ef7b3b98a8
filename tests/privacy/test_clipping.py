"""Parts of a sum on a grid of integers: never longer than the clip, whatever they were."""

import math

import pytest
import torch
from torch import Tensor

from fedft.privacy import balance, clipping, integer_noise
from fedft.privacy.clipping import UNIT, length, off_grid, on_grid
from fedft.privacy.keyed_stream import Stream

SIZES = (1e-30, 1e-3, 1.0, 1e30)


def parts_of(seed: int) -> dict[str, Tensor]:
    """Some tensors: of every size, some of zeros, some with subnormal numbers, some long in few entries."""
    rng = torch.Generator().manual_seed(seed)
    kind, scale = seed % 5, SIZES[seed % len(SIZES)]
    found = {n: torch.randn(shape, generator=rng) for n, shape in (("a", (2, 3)), ("b", (1 + seed % 7,)))}
    if kind == 0:
        return {n: torch.zeros_like(x) for n, x in found.items()}
    if kind == 1:
        return {n: torch.full_like(x, 1e-45) * torch.sign(x) for n, x in found.items()}
    if kind == 2:
        return {"a": found["a"] * scale, "b": torch.zeros_like(found["b"])}
    return {n: x * scale for n, x in found.items()}


def test_no_part_is_longer_than_the_clip_in_integers_exactly() -> None:
    """10,000 of them; the longest use the clip up, so that nothing is lost for this."""
    longest = 0
    for seed in range(10_000):
        clip = (1e-3, 0.3, 1.0, 7.0)[seed % 4]
        found = on_grid(parts_of(seed), clip)
        squares = sum(v * v for s in found.values() for v in s.flatten().tolist())  # Python's integers
        assert squares <= UNIT**2
        longest = max(longest, squares)
    assert math.sqrt(longest) > UNIT * (1 - 1e-8)


def test_a_part_within_the_clip_stays_and_a_longer_one_keeps_its_direction() -> None:
    short, long = {"x": torch.tensor([0.3, -0.4])}, {"x": torch.tensor([30.0, -40.0])}
    assert off_grid(on_grid(short, 1.0), 1.0, 1)["x"].tolist() == pytest.approx([0.3, -0.4], abs=1e-7)
    assert off_grid(on_grid(long, 1.0), 1.0, 1)["x"].tolist() == pytest.approx([0.6, -0.8], abs=1e-7)
    assert on_grid({"x": torch.zeros(2)}, 1.0)["x"].tolist() == [0, 0]


def test_the_known_mean() -> None:
    """privacy.md 12: parts (3, 4) and (0.3, 0.4), C 1, four expected; then z 2 and xi (1, -1)."""
    total = sum(on_grid({"x": torch.tensor(u)}, 1.0)["x"] for u in ([3.0, 4.0], [0.3, 0.4]))
    assert isinstance(total, Tensor)
    assert off_grid({"x": total}, 1.0, 4)["x"].tolist() == pytest.approx([0.225, 0.3], abs=1e-6)
    noisy = total + torch.tensor([2 * UNIT, -2 * UNIT])
    assert off_grid({"x": noisy}, 1.0, 4)["x"].tolist() == pytest.approx([0.725, -0.2], abs=1e-6)


def test_a_norm_is_right_beyond_the_squares_of_floats() -> None:
    assert length({"x": torch.tensor([3e300, 4e300], dtype=torch.float64)}) == pytest.approx(5e300)
    assert length({"x": torch.tensor([3e-310, 4e-310], dtype=torch.float64)}) == pytest.approx(5e-310)
    assert length({"x": torch.zeros(3), "y": torch.zeros(0)}) == 0.0


def test_what_is_not_of_floats_is_refused() -> None:
    with pytest.raises(ValueError, match="seeds is not of floats"):
        on_grid({"seeds": torch.tensor([1, 2])}, 1.0)


def test_noise_has_its_deviation_and_is_of_one_release() -> None:
    one, other = (Stream(bytes(32), bytes([n]) * 32) for n in (1, 2))
    shapes = {"x": torch.Size([100, 1000]), "y": torch.Size([7])}
    found = integer_noise.noise(one, shapes, 1.5)
    assert found["x"].dtype == torch.int64
    assert float(found["x"].double().std()) / UNIT == pytest.approx(1.5, rel=0.01)
    assert torch.equal(found["y"], integer_noise.noise(one, {"y": shapes["y"]}, 1.5)["y"])
    pair = torch.stack([found["x"].flatten(), integer_noise.noise(other, shapes, 1.5)["x"].flatten()]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.02


def test_factors_are_balanced_within_bounds_and_come_back() -> None:
    state = {"m.lora_A": torch.ones(2, 8), "m.lora_B": torch.ones(2, 2), "bias": torch.ones(3)}
    by = balance.scales(state)
    assert by["m.lora_A"] == pytest.approx((2 / 4) ** 0.5)
    assert by["m.lora_A"] * by["m.lora_B"] == pytest.approx(1)
    assert balance.scales({**state, "m.lora_B": torch.zeros(2, 2)})["m.lora_A"] == 1 / 8
    back = balance.undone(balance.scaled(state, by), by)
    assert all(torch.allclose(back[n], x) for n, x in state.items())
    scaled = balance.scaled(state, by)
    assert clipping.length({"x": scaled["m.lora_A"]}) == pytest.approx(clipping.length({"x": scaled["m.lora_B"]}))
