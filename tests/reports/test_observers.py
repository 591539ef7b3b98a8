"""Observers: each hears everything, and none of them ends a run by failing."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest

import fedft
from fedft.reports.observers import KINDS, Audience, told_of_the_end
from fedft.update import MEMORY_LOST


def broken(kind: str, info: Any) -> None:
    raise RuntimeError("no\nroute to host")


def test_every_observer_hears_every_event_in_order() -> None:
    heard: list[str] = []
    audience = Audience([lambda kind, info: heard.append(f"a {kind}"), lambda kind, info: heard.append(f"b {kind}")])
    audience("round", {})
    audience.add(lambda kind, info: heard.append(f"c {kind}"))
    audience("line", {})
    assert heard == ["a round", "b round", "a line", "b line", "c line"]


def test_one_observer_needs_no_list() -> None:
    heard: list[str] = []
    Audience(lambda kind, info: heard.append(kind))("line", {})
    assert heard == ["line"]


def test_a_failing_observer_is_told_once_in_one_line_and_the_others_hear(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[str] = []
    audience = Audience([broken, lambda kind, info: heard.append(kind)])
    with caplog.at_level(logging.WARNING):
        for kind in ("round", "line", "line"):
            audience(kind, {})
    assert heard == ["round", "line", "line"]
    (said,) = caplog.messages
    assert said == "observer broken failed at 'round', the run goes on: RuntimeError: no route to host"


def test_the_user_s_interrupt_passes() -> None:
    def interrupted(kind: str, info: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Audience([interrupted])("line", {})


def test_the_end_is_told_once_whatever_way_it_comes(tmp_path: Path) -> None:
    heard: list[tuple[str, Any]] = []

    def observe(kind: str, info: Any) -> None:
        heard.append((kind, info["summary"]))

    with told_of_the_end(observe, tmp_path) as ended:
        ended["summary"] = {"rounds": 3}
    with pytest.raises(KeyboardInterrupt), told_of_the_end(observe, tmp_path):
        raise KeyboardInterrupt
    assert heard == [("ended", {"rounds": 3}), ("ended", None)]


def test_an_observer_of_some_kinds_hears_those_only() -> None:
    heard: list[Any] = []

    @fedft.observe("line", "ended")
    def told(info: Any) -> None:
        """Keeps them."""
        heard.append(info)

    for kind in ("round", "line", "ended", "header"):
        told(kind, {"kind": kind})
    assert heard == [{"kind": "line"}, {"kind": "ended"}]
    assert (told.__name__, told.__doc__) == ("told", "Keeps them.")


def test_a_kind_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match="lines"):
        fedft.observe("lines")


def test_every_kind_of_event_is_listed() -> None:
    root = Path(__file__).parents[2]
    of_runs = [p for p in (root / "server").glob("*.py") if p.name != "queue_runs.py"]  # a queue tells of whole runs
    said = "".join(p.read_text() for p in (*of_runs, root / "simulations" / "run.py"))
    found = {*re.findall(r'\b(?:observe|audience)\(\s*"([a-z_]+)"', said), MEMORY_LOST, "ended", "progress", "refused"}
    assert len(found) > 15
    assert found == set(KINDS)


def test_the_front_door_shows_what_there_is() -> None:
    assert {"simulate", "load", "Run", "observe", "Recipe", "strategies"} <= set(dir(fedft))
    assert set(fedft.__all__) <= set(dir(fedft))
    for name in fedft.__all__:
        assert getattr(fedft, name) is not None
