"""What a site holds, on its disk: a state that only grows costs what came last, and is found again as it was."""

from pathlib import Path

import pytest
import torch

from fedft.client import noise_key
from fedft.client.disk import SiteDisk
from fedft.client.own_model import received
from fedft.client.privacy_ledger import Ledger, Terms
from fedft.contract import State
from fedft.histories.rounds import History
from fedft.update import Plan

RUN = "0123456789abcdef"


def grown(count: int, start: History | None = None, of: float = 0.0) -> History:
    history = start or History()
    for version in range(len(history.rounds), count):
        history = history.followed_by(version, {"x": torch.full((500,), version + of)})
    return history


def plan(version: int) -> Plan:
    return Plan(RUN, version, version, rank=4)


def held(folder: Path) -> State:
    found = SiteDisk(folder).state(RUN)
    assert found is not None
    return found[1]


def test_a_growing_state_is_added_to_over_restarts_and_found_as_it_was(tmp_path: Path) -> None:
    disk, history, written = SiteDisk(tmp_path), History(), []
    for version in range(1, 21):
        if version == 10:
            disk = SiteDisk(tmp_path)
            history = History.of(held(tmp_path).tensors)
            assert disk.state(RUN) is not None
            history = History.of(disk.state(RUN)[1].tensors)  # type: ignore[index]
        history = grown(version, history)
        before = sum(p.stat().st_size for p in tmp_path.iterdir())
        disk.keep_state(RUN, f"label {version}", State(version, history), plan(version))
        written.append(sum(p.stat().st_size for p in tmp_path.iterdir()) - before)
        assert held(tmp_path).digest == State(version, dict(grown(version))).digest
    assert max(written[1:]) < 2 * min(written[1:])
    assert SiteDisk(tmp_path).state(RUN)[0] == "label 20"  # type: ignore[index]
    assert not (tmp_path / f"state-{RUN}.fedft").exists()
    made, state = received(tmp_path, RUN)
    assert (made.version, made.rank, state.digest) == (20, 4, State(20, dict(grown(20))).digest)


def test_a_state_of_another_past_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    disk = SiteDisk(tmp_path)
    disk.keep_state(RUN, "a", State(5, grown(5)))
    other = State(4, grown(4, grown(5).before(2), of=0.5))
    disk.keep_state(RUN, "b", other)
    assert held(tmp_path).digest == State(4, dict(other.tensors)).digest
    disk.keep_state(RUN, "c", State(6, {"w": torch.ones(2)}))
    assert list(held(tmp_path).tensors) == ["w"]
    disk.keep_state(RUN, "d", State(7, grown(7)))
    assert held(tmp_path).version == 7


@pytest.mark.parametrize("lost", ["history", "growing"])
def test_a_state_of_which_a_file_is_torn_counts_as_lost(tmp_path: Path, lost: str) -> None:
    SiteDisk(tmp_path).keep_state(RUN, "a", State(5, grown(5)))
    path = tmp_path / f"{lost}-{RUN}.fedft"
    path.write_bytes(path.read_bytes()[:-1])
    assert SiteDisk(tmp_path).state(RUN) is None


def test_the_files_go_with_their_run(tmp_path: Path) -> None:
    disk = SiteDisk(tmp_path)
    for n in range(40):
        disk.keep_state(f"{n:016x}", "a", State(1, grown(1)))
    disk.keep_runs([])
    left = {p.name.partition("-")[2] for p in tmp_path.glob("*-*.fedft")}
    assert 0 < len(left) < 40
    assert all((tmp_path / f"{name}-{run}").exists() for run in left for name in ("growing", "history"))


def test_the_key_of_a_run_s_noise_goes_with_the_run_and_what_it_cost_stays(tmp_path: Path) -> None:
    """Whoever takes the disk later cannot subtract the noise from what was sent."""
    disk = SiteDisk(tmp_path)
    Ledger(tmp_path).begin(Terms(RUN, "local-dp", 10, 1.0))
    for n in range(20):
        noise_key.of_run(disk.kept(f"{n:016x}"))
    disk.keep_runs([])
    assert 0 < len(list(tmp_path.glob("kept/*/privacy.key"))) < 20
    assert list(Ledger(tmp_path).read().runs) == [RUN]
