"""The bench of a run's memory: what it does for each method, and that a process of its own says what that took."""

from pathlib import Path

import pytest

from fedft.benchmarks import memory, peak_memory
from fedft.benchmarks.clients import made_up

SMALL = (32, 1)


@pytest.mark.parametrize("method", memory.METHODS)
def test_a_run_of_every_method_comes_to_its_end(method: str, tmp_path: Path) -> None:
    assert memory.run(method, made_up(tmp_path, *SMALL)) > 4 * 32**2


@pytest.mark.slow  # a process that imports for seconds
def test_a_process_of_its_own_says_what_a_run_took() -> None:
    said = peak_memory.in_process("fedft.benchmarks.memory", "fedit", *map(str, SMALL))
    assert said.keys() == {"copies", "peak_mb", "weights_mb"}
    assert 0 < said["weights_mb"] < 1
    assert said["copies"] == pytest.approx(said["peak_mb"] / said["weights_mb"])


def test_the_peak_is_that_of_the_work_and_what_it_gives_is_given() -> None:
    mebibytes = 64
    found, peak = peak_memory.beside(lambda: len(bytearray(b"1") * (mebibytes << 20)))
    assert found == mebibytes << 20
    assert 0.8 * found < peak < 2 * found
