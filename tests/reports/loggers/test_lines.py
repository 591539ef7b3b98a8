"""What trackers are told: numbers of a line, a bounded number of clients, the run file as plain values."""

import logging
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.config import Privacy, RunConfig
from fedft.reports.loggers import lines
from fedft.suites.loggers import line


def test_every_number_of_a_line_has_a_name_and_nothing_else_has() -> None:
    more = {"round": 0, "aggregation_error": 1e-9, "epsilon": 2.5, "token_loss": float("nan"), "hidden": ["bytes"]}
    found = lines.numbers(line(1, **more))
    assert found == {
        "loss": 1.5, "accuracy": 0.1, "epsilon": 2.5, "train_loss": 2.0, "bytes_up": 10, "bytes_down": 20,
        "aggregation_error": 1e-9, "participants": 1, "refused": 0, "seconds/evaluate": 0.5,
    }  # fmt: skip


def test_what_a_line_hides_is_no_zero() -> None:
    """Of secret coins the lists are there, empty."""
    found = lines.numbers(line(1, participants=[], refused=[], seconds={}, hidden=["participants", "refused"]))
    assert not {"participants", "refused"} & found.keys()


def test_the_first_clients_are_written_and_the_others_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"c{i:02}" for i in range(25)]
    clients = lines.ClientLosses("it")
    first = {c: {"loss": 1.0} for c in names[5:]}
    with caplog.at_level(logging.WARNING):
        assert list(clients.of({"evaluation": first})) == [f"client_loss/{c}" for c in names[5:]]
        assert caplog.text == ""
        assert clients.of({"evaluation": {c: {"loss": 2.0} for c in names}}).keys() == {
            f"client_loss/{c}" for c in names[5:]
        }
        assert clients.of({"evaluation": {"c00": {"loss": 1.0}, "c07": {"accuracy": 1.0}}}) == {}
    assert [r.getMessage() for r in caplog.records] == [
        "it: of single clients the losses of 20 are written; those of 5 more are in metrics.jsonl alone"
    ]
    assert lines.ClientLosses("it").of({"version": 0}) == {}, "nothing is said of single clients"


@pytest.mark.parametrize("privacy", [{"mode": "local-dp", "clip": 1.0, "noise_multiplier": 1.0}, {"secagg": "on"}, {}])
def test_no_tracker_is_told_of_single_clients_that_a_run_hides(tmp_path: Path, privacy: dict[str, Any]) -> None:
    told: list[dict[str, float]] = []
    config = RunConfig(privacy=Privacy(**privacy))
    observe = lines.follow("it", tmp_path, config, lambda version, found: told.append(found), lambda finished: None)
    observe("line", line(1, evaluation={"north": {"loss": 1.0}}))
    assert "loss" in told[0]
    assert ("client_loss/north" in told[0]) == (not privacy)


def test_names_that_look_alike_when_they_are_plain_stay_apart() -> None:
    assert len({lines.plain(n) for n in ("a/b", "a_b", "a:b", "ä_b")}) == 4


def test_the_run_file_is_flat_and_plain() -> None:
    tables: dict[str, Any] = {"strategy": {"name": "fedopt", "on": {"name": "fedprox", "mu": 0.1}}}
    found = lines.settings(run_file.from_dict({**tables, "clients": {"rank": [2, 4]}}))
    assert (found["strategy.name"], found["clients.rank"]) == ("fedopt", "[2, 4]")
    assert any(x == 0.1 for name, x in found.items() if name.endswith("on.mu"))
    assert all(isinstance(x, str | int | float | bool) for x in found.values())


def test_a_folder_keeps_its_identity_and_another_has_another(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    own = lines.identity(tmp_path)
    assert len(own) == 8
    assert lines.identity(tmp_path) == own != lines.identity(tmp_path / "b")
