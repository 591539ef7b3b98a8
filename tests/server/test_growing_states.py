"""Durable states that only grow: each round is written once, and a damaged file costs no more than what needs it."""

from pathlib import Path

import pytest
import torch

from fedft import durable
from fedft.contract import State
from fedft.histories.rounds import History
from fedft.server.checkpoint import Store


def grown(count: int, start: History | None = None, of: float = 0.0) -> History:
    history = start or History()
    for version in range(len(history.rounds), count):
        history = history.followed_by(version, {"x": torch.full((500,), version + of)})
    return history


def rounds_saved(folder: Path, count: int) -> State:
    store, history = Store(folder), History()
    store.save(State(0, {}), {})
    for version in range(1, count + 1):
        history = grown(version, history)
        store.save(State(version, history, {"own": {"m": torch.ones(1)}}), {"n": version})
    return State(count, history, {"own": {"m": torch.ones(1)}})


def test_a_round_of_a_growing_state_is_written_once_and_found_again(tmp_path: Path) -> None:
    saved = rounds_saved(tmp_path, 20)
    sizes = [(tmp_path / f"gen-{v:08d}.fedft").stat().st_size for v in (16, 20)]
    assert sizes[1] - sizes[0] < 20
    assert (tmp_path / "history").stat().st_size < 20 * 2200
    for recover in (False, True):
        store = Store(tmp_path)
        found = store.latest(recover=recover)
        assert found is not None
        assert (found[0].digest, found[1]) == (saved.digest, {"n": 20})
    store.save(State(21, grown(21, History.of(found[0].tensors)), saved.own), {})
    again = Store(tmp_path).latest()
    assert again is not None
    assert again[0].digest == State(21, dict(grown(21)), saved.own).digest


@pytest.mark.parametrize("cut", [1, 2100, 15_000])
def test_a_damaged_history_costs_the_generations_that_need_the_damaged_part(tmp_path: Path, cut: int) -> None:
    rounds_saved(tmp_path, 20)
    with open(tmp_path / "history", "r+b") as f:
        f.truncate((tmp_path / "history").stat().st_size - cut)
    left = (tmp_path / "history").stat().st_size
    store = Store(tmp_path)
    found = store.latest()
    assert found is not None
    version = found[0].version
    assert version == max(v for v in (0, 8, 16, 18, 19) if v * (left + cut) // 20 <= left)
    assert found[0].digest == State(version, dict(grown(version)), {"own": {"m": torch.ones(1)}}).digest
    assert max(tmp_path.glob("gen-*.fedft")).name == f"gen-{version:08d}.fedft"
    store.save(State(version + 1, grown(version + 1, History.of(found[0].tensors), of=0.5)), {})
    again = Store(tmp_path).latest()
    assert again is not None
    assert again[0].version == version + 1


@pytest.mark.parametrize(("round", "left"), [(2, 0), (9, 8), (17, 16)])
def test_one_altered_byte_costs_what_is_behind_it_and_nothing_before(tmp_path: Path, round: int, left: int) -> None:
    """A state of all rounds needs each of them; OPERATING.md says what it costs, and what gives it back."""
    rounds_saved(tmp_path, 20)
    file = tmp_path / "history"
    data = bytearray(file.read_bytes())
    data[(2 * round + 1) * len(data) // 40] ^= 1  # in the middle of that round
    file.write_bytes(data)
    found = Store(tmp_path).latest()
    assert found is not None
    assert found[0].version == left
    assert found[0].digest == State(left, dict(grown(left)), {"own": {"m": torch.ones(1)}} if left else {}).digest


def test_a_state_with_another_past_than_the_one_on_disk_is_saved_whole(tmp_path: Path) -> None:
    """As a gate may give one; the generations before stay what they are."""
    rounds_saved(tmp_path, 4)
    store = Store(tmp_path)
    assert store.latest() is not None
    other = State(5, grown(5, of=0.5))
    store.save(other, {})
    found = Store(tmp_path).latest()
    assert found is not None
    assert found[0].digest == other.digest
    (tmp_path / "gen-00000005.fedft").unlink()
    assert (before := Store(tmp_path).latest()) is not None
    assert (before[0].version, len(before[0].tensors)) == (4, 4)


def test_a_growing_state_of_before_there_were_histories_is_read_and_goes_on(tmp_path: Path) -> None:
    Store(tmp_path).save(State(12, dict(grown(12))), {})
    assert not (tmp_path / "history").exists()
    store = Store(tmp_path)
    found = store.latest()
    assert found is not None
    store.save(after := State(13, grown(13, History.of(found[0].tensors))), {})
    again = Store(tmp_path).latest()
    assert again is not None
    assert again[0].digest == after.digest == State(13, dict(grown(13))).digest
    assert (tmp_path / "history").exists()
    assert durable.written_by(tmp_path).endswith("format 2")
