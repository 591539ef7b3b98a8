"""The bench of pruned models: slices take less memory than masks, in its smallest setting."""

import pytest

from fedft.benchmarks import slices


def test_slices_take_less_memory_and_masks_as_much_as_the_whole_model():
    found = slices.bench(quick=True, turns=1)
    facts = {(r.what, r.way): r.facts for r in found.rows}
    for what in ("25% pruned", "50% pruned"):
        assert facts[what, "masks"]["base MiB"] == facts[what, "whole"]["base MiB"]
        assert facts[what, "slices"]["peak MiB"] < facts[what, "whole"]["peak MiB"] < facts[what, "masks"]["peak MiB"]
    h, layers, pruned = 64, 2, 0.5
    cut = pruned * layers * (4 * h * h + 3 * 3 * h * h) * 4 / 2**20  # q k v o, gate up down, in float32
    adapters = 8 * pruned * layers * (4 * h + 3 * 3 * h) * 4 / 2**20  # the pruned side of each pair
    less = facts["50% pruned", "whole"]["base MiB"] - facts["50% pruned", "slices"]["base MiB"]
    assert less == pytest.approx(cut + adapters, rel=1e-3)
