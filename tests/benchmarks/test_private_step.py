"""The bench of steps with noise, in its smallest setting: what is timed is what it says."""

import pytest
import torch

from fedft.benchmarks import private_step
from fedft.benchmarks.step import place_of, rows_of


def test_every_way_has_its_row() -> None:
    found = private_step.bench(quick=True, turns=1)
    ways = {(r.what, r.way) for r in found.rows}
    steps = {(what, way) for what in ("lora", "ffa") for way in ("plain", "example-dp", "row by row")}
    assert ways == steps | {(f"{what}, slopes", way) for what in ("lora", "ffa") for way in ("zo", "zo-dp")}
    assert all(r.seconds > 0 and r.facts["peak MiB"] > 0 for r in found.rows)


def test_one_pass_and_a_pass_for_each_record_are_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a turn of one step, whose noise is the same."""
    monkeypatch.setattr(private_step, "STEPS", 1)
    ended = []
    for way in ("example-dp", "row by row"):
        handle = place_of("ours", 64, 2, 500)
        private_step.ways_of(handle, rows_of(4, 24, 500))[way][0]()
        ended.append(torch.cat([p.detach().flatten() for p in handle.parameters().values()]))
    assert torch.allclose(*ended, atol=1e-5)
