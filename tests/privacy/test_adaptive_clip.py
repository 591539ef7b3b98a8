"""A clip that follows norms through noise."""

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from fedft.privacy.adaptive_clip import AdaptiveClip
from fedft.privacy.keyed_stream import Stream


def draws(xi: float) -> Stream:
    """A stream whose next Gaussian is this."""
    said: Any = SimpleNamespace(gaussians=lambda *about: torch.tensor([xi], dtype=torch.float64))
    return cast(Stream, said)


def test_the_known_step() -> None:
    """privacy.md 12: C 1, norms 0.5, 2, 3, three expected, z 1, xi 0.5."""
    clip = AdaptiveClip(0.5, 0.2, 1.0, 3.0)
    assert clip.count_deviation == pytest.approx(1.64)
    assert clip.sum_multiplier == pytest.approx(1.049988, abs=1e-6)
    assert clip.after(1.0, within=1, clipped=2, stream=draws(0.5)) == pytest.approx(0.978893, abs=1e-6)


def test_a_clip_rises_where_all_are_clipped_and_falls_where_none_is() -> None:
    clip = AdaptiveClip(0.5, 0.2, 1.0, 20.0)
    assert clip.after(1.0, within=0, clipped=20, stream=draws(0.0)) > 1.0
    assert clip.after(1.0, within=20, clipped=0, stream=draws(0.0)) < 1.0


@pytest.mark.parametrize("expected", [1, 5, 10, 20, 100])
@pytest.mark.parametrize("z", [0.3, 1.0, 4.0])
def test_the_two_releases_together_are_one_of_z_and_cost_five_percent_at_most(expected: int, z: float) -> None:
    clip = AdaptiveClip(0.5, 0.2, z, expected)
    together = clip.sum_multiplier**-2 + (2 * clip.count_deviation) ** -2
    assert together**-0.5 == pytest.approx(z)
    assert z < clip.sum_multiplier <= 1.0501 * z


@pytest.mark.parametrize("start", [0.01, 100.0])
def test_a_clip_from_far_away_finds_the_median_in_100_rounds(start: float) -> None:
    """Norms of 20 clients, log-normal around 1; the mean of the last ten rounds, five keys."""
    found = []
    for key in range(5):
        rng, clip = torch.Generator().manual_seed(key), start
        adaptive = AdaptiveClip(0.5, 0.2, 1.0, 20.0)
        for n in range(110):
            norms = torch.exp(0.5 * torch.randn(20, generator=rng))
            within = int((norms <= clip).sum())
            clip = adaptive.after(clip, within, 20 - within, Stream(bytes([key]) * 32, bytes([n]) * 32))
            found += [math.log(clip)] if n >= 100 else []
    assert math.exp(sum(found) / len(found)) == pytest.approx(1.0, rel=0.2)
