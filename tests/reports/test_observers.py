"""Observers: each hears everything, and none of them ends a run by failing."""

import logging
from pathlib import Path
from typing import Any

import pytest

from fedft.reports.observers import Audience, told_of_the_end


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
