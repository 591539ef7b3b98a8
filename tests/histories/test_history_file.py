"""A history's file: what a mark names is read whole or not at all, whatever stands behind it."""

from pathlib import Path

import pytest
import torch

from fedft.arithmetic import tensors
from fedft.histories.history_file import HistoryFile, Mark
from fedft.histories.rounds import History


def grown(count: int, start: History | None = None, of: float = 0.0) -> History:
    history = start or History()
    for version in range(len(history.rounds), count):
        history = history.followed_by(version, {"x": torch.full((3,), version + of), "s": torch.tensor([version])})
    return history


def written(path: Path, history: History, file: HistoryFile | None = None) -> tuple[HistoryFile, Mark]:
    file = file or HistoryFile(path)
    mark = file.add(history)
    assert mark is not None
    file.keep(mark)
    return file, mark


def test_what_a_mark_names_is_read_by_another_process_and_goes_on_there(tmp_path):
    path, history = tmp_path / "history", grown(12)
    _, mark = written(path, history)
    file = HistoryFile(path)
    found = file.read(mark.said)
    assert found is not None
    assert tensors.digest(found[0]) == tensors.digest(history)
    file.keep(found[1])
    _, later = written(path, grown(14, found[0]), file)
    again = HistoryFile(path).read(later.said)
    assert again is not None
    assert tensors.digest(again[0]) == tensors.digest(grown(14))
    assert HistoryFile(path).read(mark.said) is not None, "older marks hold"


def test_a_round_costs_its_own_bytes_however_many_there_were(tmp_path):
    path = tmp_path / "history"
    file, history, grew = HistoryFile(path), History(), []
    for version in range(30):
        before = path.stat().st_size if version else 0
        history = grown(version + 1, history)
        written(path, history, file)
        grew.append(path.stat().st_size - before)
    assert max(grew) <= min(grew) + 16
    assert file.room == grew[-1]


def test_a_round_that_was_not_committed_makes_room_for_the_one_that_is(tmp_path):
    """The process died, or the disk was full, between the history and the generation."""
    path, history = tmp_path / "history", grown(4)
    file, kept = written(path, history)
    assert file.add(grown(6, history, of=0.5)) is not None
    other = history.followed_by(4, {"x": torch.ones(1)})
    mark = file.add(other)
    assert mark is not None
    found = HistoryFile(path).read(mark.said)
    assert found is not None
    assert tensors.digest(found[0]) == tensors.digest(other)
    assert path.stat().st_size == mark.size
    assert HistoryFile(path).read(kept.said) is not None


def test_another_past_is_not_written_over_the_one_that_marks_name(tmp_path):
    path, history = tmp_path / "history", grown(4)
    file, _ = written(path, history)
    before = path.read_bytes()
    assert file.add(grown(6, grown(3, of=0.5))) is None
    assert file.add(grown(3, history.before(3))) is None
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "first_is_whole"),
    [(lambda raw: raw[:-1], True), (lambda raw: b"", False), (lambda raw: raw[:9] + b"\x7f" + raw[10:], False)],
)
def test_a_torn_or_altered_beginning_is_found_and_what_stands_before_the_damage_is_read(
    tmp_path, spoil, first_is_whole
):
    path = tmp_path / "history"
    file, first = written(path, history := grown(2))
    _, mark = written(path, grown(4, history), file)
    path.write_bytes(spoil(path.read_bytes()))
    assert HistoryFile(path).read(mark.said) is None
    assert (HistoryFile(path).read(first.said) is not None) == first_is_whole
    path.unlink()
    assert HistoryFile(path).read(first.said) is None
