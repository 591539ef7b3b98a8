"""What clients keep: only rounds that counted matter, and it survives the process."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedft import strategies, testing
from fedft.client.private_state import Kept
from fedft.contract import Trained
from fedft.training.first_order import FirstOrder

RUN = "0123456789abcdef"


def of(x: float) -> dict[str, dict[str, torch.Tensor]]:
    return {"owner": {"own": torch.tensor([x])}}


def opened(folder: Path | None, run: str = RUN) -> Kept:
    kept = Kept(folder)
    kept.open(run)
    return kept


@pytest.mark.parametrize("disk", [True, False], ids=["on disk", "in memory"])
def test_a_turn_starts_from_the_round_that_counted_last(tmp_path: Path, disk: bool) -> None:
    kept = opened(tmp_path if disk else None)
    kept.keep(0, of(1.0), None)
    kept.keep(3, of(2.0), 0)  # lost on the way: it never counts
    kept.keep(4, of(3.0), 0)
    assert kept.after(None) == {}
    assert kept.after(0)["owner"]["own"] == 1.0
    assert kept.after(4)["owner"]["own"] == 3.0


def test_a_new_process_finds_it(tmp_path: Path) -> None:
    opened(tmp_path).keep(2, of(5.0), None)
    assert opened(tmp_path).after(2)["owner"]["own"] == 5.0


def test_a_server_that_goes_back_by_one_round_that_counted_finds_it_too(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.keep(0, of(0.0), None)
    for number in range(1, 6):
        kept.keep(number, of(float(number)), number - 1)
    assert opened(tmp_path).after(3)["owner"]["own"] == 3.0
    assert len(list(tmp_path.iterdir())) == 3  # two that counted and the newest: it does not grow


def test_another_runs_are_not_taken(tmp_path: Path) -> None:
    opened(tmp_path).keep(0, of(1.0), None)
    other = opened(tmp_path, "f" * 16)
    assert other.after(0) == {}
    other.keep(1, of(2.0), None)
    assert [p.name for p in tmp_path.iterdir()] == ["kept-1.fedft"]


def test_what_is_damaged_is_as_if_it_were_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path).keep(0, of(1.0), None)
    (tmp_path / "kept-0.fedft").write_bytes(b"x" * 100)
    with caplog.at_level(logging.WARNING, logger="fedft.client.private_state"):
        found = opened(tmp_path)
    assert "kept-0.fedft cannot be read, and counts as lost: torn or altered" in caplog.text
    assert found.after(0) == {}
    assert found.has_lost(0)


def test_only_what_was_there_once_is_lost(tmp_path: Path) -> None:
    kept = opened(tmp_path)
    kept.keep(0, {}, None)
    again = opened(tmp_path)
    assert not again.has_lost(None)
    assert not again.has_lost(0)
    assert again.has_lost(1)


def test_a_recipe_that_keeps_something_has_to_say_so() -> None:
    def secretive(handle, data, turn):
        return Trained(*FirstOrder()(handle, data, turn)[:2], of(1.0))

    t = testing.toy(replace(strategies.make("fedit", {}), local=secretive))
    with pytest.raises(AssertionError, match="keeps something, which is not declared"):
        t.update(t.state(), 0)
