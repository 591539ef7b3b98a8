"""The bench of a local step: what memory its modes take, in its smallest setting."""

from fedft.benchmarks import step


def test_packed_bases_and_memory_modes_take_less_memory():
    found = step.bench(quick=True, turns=1)
    base = {r.way: r.facts["base MiB"] for r in found.rows}
    peak = {r.way: r.facts["peak MiB"] for r in found.rows}
    assert base["4 bits"] < base["8 bits"] < base["ours"] == base["by hand"]
    assert base["4 bits, both"] == base["4 bits"]
    assert peak["ours"] < peak["by hand"]
    assert peak["4 bits, both"] < peak["4 bits"] / 2
    matrix = 4 * 192 * 64 / 2**20  # the largest, which a product reads in floats, and what it is read through
    assert abs(peak["4 bits"] - peak["ours"]) <= 3 * matrix
