"""The contract every logger keeps, in a run's folder that holds what such a folder holds.

    from fedft.suites.loggers import logger_contract
    def test_mine(): logger_contract(mine, points=read_mine)

`points(folder)` reads back what the logger wrote there: (metric, version) for each point, in any order. Without it the
promise that a resumed run has each point once cannot be checked, and is not.
"""

import json
import tempfile
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fedft.config import RunConfig
from fedft.reports.loggers.interface import Logger
from fedft.suites.promises import kept

Points = Callable[[Path], Collection[tuple[str, int]]]


def line(version: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl as the engine writes it."""
    found: dict[str, Any] = {"version": version, "loss": 3.0 / (version + 1), "accuracy": 0.1 * version, "refused": []}
    found |= {"bytes_up": 10 * version, "bytes_down": 20, "seconds": {"evaluate": 0.5}, "state_digest": "00"}
    if version:
        found |= {"round": version - 1, "train_loss": 2.0, "participants": ["a"], "weights": {"a": 3}}
        found |= {"bytes": {"a": {"up": 5, "down": 6, "needed": 6}}, "aggregation_error": None}
    return found | more


@dataclass(frozen=True)
class Case:
    """A logger, a run's folder, and how to read back what was written."""

    logger: Logger
    folder: Path
    points: Points | None

    def run(self, versions: range, *, committed: int = 0, end: bool = True, **more: Any) -> None:
        """Tell the logger of one process's part of a run: `committed` lines are there, those of `versions` are new."""
        file = self.folder / "metrics.jsonl"
        file.write_text("".join(json.dumps(line(v), sort_keys=True) + "\n" for v in range(committed)))
        observe = self.logger(self.folder, RunConfig())
        observe("round", {"round": 0, "asked": ["a"]})
        for v in versions:
            with file.open("a") as f:
                f.write(json.dumps(line(v), sort_keys=True) + "\n")
            observe("line", line(v, **more))
        if end:
            observe("ended", {"folder": self.folder, "summary": {"rounds": versions.stop - 1}})


def _hears_a_whole_run(case: Case) -> None:
    case.run(range(3))
    _each_point_once(case, range(3))


def _any_line_can_be_written(case: Case) -> None:
    observe = case.logger(case.folder, RunConfig())
    bare = {"version": 0, "refused": [], "seconds": {}, "bytes_up": 0, "bytes_down": 0, "state_digest": "00"}
    observe("line", bare)  # nobody has held-out rows
    observe("line", line(1, odd_metric=7, accuracy=1e300))
    observe("ended", {"folder": case.folder, "summary": None})


def _unknown_events_pass(case: Case) -> None:
    observe = case.logger(case.folder, RunConfig())
    for kind in ("preparing", "admitted", "evaluating", "a kind of next year"):
        observe(kind, {"folder": case.folder})
    observe("ended", {"folder": case.folder, "summary": None})


def _what_is_told_is_not_changed(case: Case) -> None:
    observe = case.logger(case.folder, RunConfig())
    told = line(0)
    before = deepcopy(told)
    observe("line", told)
    assert told == before, "the line that was told is another one afterwards: it is the run's own"
    observe("ended", {"folder": case.folder, "summary": None})


def _the_run_s_own_files_stay(case: Case) -> None:
    own = {"config.toml": b"[server]\n", "state/1.state": b"bytes", "metrics.jsonl": b"", "clients/a/kept": b"k"}
    for name, content in own.items():
        (case.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (case.folder / name).write_bytes(content)
    observe = case.logger(case.folder, RunConfig())
    observe("line", line(0))
    observe("ended", {"folder": case.folder, "summary": None})
    changed = [n for n, x in own.items() if not (case.folder / n).is_file() or (case.folder / n).read_bytes() != x]
    assert not changed, f"{changed} are the run's own"


def _a_resumed_run_has_each_point_once(case: Case) -> None:
    case.run(range(4), end=False)  # killed; of its lines only three were committed
    case.run(range(3, 6), committed=3)
    _each_point_once(case, range(6))
    case.run(range(6, 6), committed=6)  # finished already
    _each_point_once(case, range(6))


def _each_point_once(case: Case, versions: range) -> None:
    if case.points is None:
        return
    found = list(case.points(case.folder))
    for name in ("loss", "accuracy"):
        of = sorted(v for n, v in found if n == name)
        assert of == list(versions), f"{name} has points at {of}, wanted {list(versions)}"


PROMISES: dict[str, Callable[[Case], None]] = {
    "a whole run is heard to its end": _hears_a_whole_run,
    "a line without metrics and one with strange ones are no error": _any_line_can_be_written,
    "events it does not know pass": _unknown_events_pass,
    "what it is told is not changed": _what_is_told_is_not_changed,
    "the run's own files stay as they are": _the_run_s_own_files_stay,
    "a resumed run has each point once": _a_resumed_run_has_each_point_once,
}


def logger_contract(logger: Logger, points: Points | None = None, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `logger`, each in a folder of its own; returns {promise: "" or what broke it}.

    Args:
        logger: the factory.
        points: reads back (metric, version) of each point in a folder; None: that is not checked.
        stop: raise AssertionError at the first failure.
    """

    def in_a_folder(check: Callable[[Case], None], logger: Logger) -> None:
        with tempfile.TemporaryDirectory() as folder:
            check(Case(logger, Path(folder), points))

    checks = {promise: partial(in_a_folder, check) for promise, check in PROMISES.items()}
    return kept(checks, logger, getattr(logger, "__qualname__", type(logger).__qualname__), stop=stop)
