"""The contract of loggers: TensorBoard's keeps it, and each way of breaking it is found."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedft import registry
from fedft.config import RunConfig
from fedft.reports.observers import Observer
from fedft.suites.loggers import logger_contract


def tensorboard_points(folder: Path) -> list[tuple[str, int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "events"), size_guidance={"scalars": 0})
    events.Reload()
    return [(name, e.step) for name in events.Tags()["scalars"] for e in events.Scalars(name)]


def test_tensorboard_keeps_the_contract() -> None:
    logger_contract(registry.loggers.load("tensorboard"), tensorboard_points)


def csv(folder: Path, config: RunConfig, *, fresh: bool = True, wreck: str = "") -> Observer:
    """A logger in ten lines; `fresh` and `wreck` break it."""
    file = folder / "points.csv"
    if fresh:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if _there(folder) else ()
        file.write_text("".join(_rows(line) for line in lines))

    def observe(kind: str, info: Any) -> None:
        if kind == "line":
            with file.open("a") as f:
                f.write(_rows(info))
            if wreck == "told":
                info["version"] = -1
            if wreck == "files":
                (folder / "config.toml").write_text("mine now")
            if wreck == "bare":
                float(info["loss"])
        elif wreck == "kinds":
            assert kind in ("round", "ended")

    return observe


def _there(folder: Path) -> bool:
    return (folder / "metrics.jsonl").exists()


def _rows(line: Mapping[str, Any]) -> str:
    return "".join(f"{k},{line['version']}\n" for k in ("loss", "accuracy") if k in line)


def csv_points(folder: Path) -> list[tuple[str, int]]:
    rows = (row.split(",") for row in (folder / "points.csv").read_text().splitlines())
    return [(name, int(version)) for name, version in rows]


def test_a_logger_of_ten_lines_keeps_the_contract() -> None:
    logger_contract(csv, csv_points)


@pytest.mark.parametrize(
    ("how", "promise"),
    [
        ({"fresh": False}, "a resumed run has each point once"),
        ({"wreck": "told"}, "what it is told is not changed"),
        ({"wreck": "files"}, "the run's own files stay as they are"),
        ({"wreck": "bare"}, "a line without metrics and one with strange ones are no error"),
        ({"wreck": "kinds"}, "events it does not know pass"),
    ],
)
def test_a_logger_that_breaks_a_promise_is_told_which(how: dict[str, Any], promise: str) -> None:
    def wrong(folder: Path, config: RunConfig) -> Observer:
        return csv(folder, config, **how)

    assert logger_contract(wrong, csv_points, stop=False)[promise]
    with pytest.raises(AssertionError, match="wrong"):
        logger_contract(wrong, csv_points)
