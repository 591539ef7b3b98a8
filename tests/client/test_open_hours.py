"""A site works in its hours and in no others, by the clock that its file says."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from asked_site import SITE, job, site_file
from deployed import SITES, Deployment
from virtual_clock import Clock

from fedft.client import open_hours
from fedft.client import site_file as site_files
from fedft.client.held_letters import Door, HeldLetters
from fedft.errors import ConfigError
from fedft.server import site_reports

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = "UTC") -> float:
    """Seconds since 1970 of a day and time; 2026-01-05 is a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.fixture
def in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("hours", "when", "until"),
    [
        ("22:00-06:00", "2026-01-05 21:59", "22:00"),
        ("22:00-06:00", "2026-01-05 22:00", ""),
        ("22:00-06:00", "2026-01-06 05:59:59", ""),
        ("22:00-06:00", "2026-01-06 06:00", "22:00"),
        ("22:00-06:00, sat-sun", "2026-01-10 12:00", ""),
        ("22:00-06:00, sat-sun", "2026-01-09 12:00", "22:00"),
        ("sat-sun", "2026-01-05 00:00", "Sat 00:00"),
        ("sat-sun", "2026-01-09 23:59", "00:00"),
        ("sat-sun", "2026-01-11 23:59:59", ""),
        ("fri 22:00-06:00", "2026-01-10 03:00", ""),
        ("fri 22:00-06:00", "2026-01-11 03:00", "Fri 22:00"),
        ("fri-mon", "2026-01-06 00:00", "Fri 00:00"),
        ("fri-mon", "2026-01-05 12:00", ""),
        ("mon-fri 8:00-12:00, mon-fri 13:00-17:00", "2026-01-05 12:30", "13:00"),
        ("mon 00:00-24:00", "2026-01-05 23:59", ""),
        ("SAT - SUN", "2026-01-10 12:00", ""),
        ("mon 09:00-10:00", "2026-01-05 10:00", "Mon 09:00"),
    ],
)
def test_windows_of_the_week(hours: str, when: str, until: str) -> None:
    found = open_hours.parsed(f"{hours}, UTC").closed(at(when))
    assert found == (f"{until} (UTC+00:00)" if until else "")


def test_a_zone_s_clock_is_gone_by_in_summer_and_winter() -> None:
    hours = open_hours.parsed(f"22:00-06:00, {BERLIN}")
    assert hours.closed(at("2026-01-05 20:30")) == "22:00 (UTC+01:00)"
    assert hours.closed(at("2026-07-06 20:30")) == ""
    assert hours.closed(at("2026-03-28 08:00", BERLIN)) == "22:00 (UTC+01:00)"
    assert open_hours.parsed(f"mon, {BERLIN}").closed(at("2026-03-28 08:00", BERLIN)) == "Mon 00:00 (UTC+02:00)"


def test_without_a_zone_it_is_this_machine_s_clock(in_tokyo: None) -> None:
    hours = open_hours.parsed("22:00-06:00")
    assert hours.closed(at("2026-01-05 14:00")) == ""
    assert hours.closed(at("2026-01-05 12:00")) == "22:00 (UTC+09:00)"
    said = hours.said(at("2026-01-05 12:00"))
    assert said == "22:00-06:00, local time (UTC+09:00, now 21:00): closed until 22:00 (UTC+09:00)"


@pytest.mark.parametrize(
    "text",
    ["", ",", "22-06", "22:00", "25:00-26:00", "22:60-23:00", "24:01-24:30", "08:00-08:00", "24:00-06:00", "sun-",
     "weekend", "22:00-06:00, Mars/Olympus", "22:00-06:00, sat-sun, ../../etc", "Europe/Berlin", "22:00-06:00,",
     "mon tue", "22:00-06:00; sat", "٢٢:00-06:00"],
)  # fmt: skip
def test_a_bad_text_is_one_line_that_says_what_is_wanted(tmp_path: Path, text: str) -> None:
    file = site_file(tmp_path, f"hours = {json.dumps(text)}\n")
    with pytest.raises(ConfigError, match=r"\[site\] hours = ") as e:
        site_files.load(file)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "text", ["22:00-06:00, sat-sun", "mon-fri 20:00-07:00, Europe/Berlin", "sat, sun", "1:00-2:00"]
)
def test_a_good_text_is_taken(tmp_path: Path, text: str) -> None:
    assert site_files.load(site_file(tmp_path, f'hours = "{text}"\n')).site.hours == text


def closed_until(state: Path, now: list[float], **policy: Any) -> Door:
    site = replace(SITE, site=replace(SITE.site, state=str(state), hours="22:00-06:00, UTC"))
    return Door(replace(site, policy=replace(site.policy, **policy)), state, clock=lambda: now[0])


def test_what_the_site_says_the_server_shows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = [at("2026-01-05 12:00")]
    with caplog.at_level(logging.INFO):
        door = closed_until(tmp_path, now)
        assert "hours: 22:00-06:00, UTC (UTC+00:00, now 12:00): closed until 22:00 (UTC+00:00)" in caplog.messages
        said = door.closed(job())
        assert door.closed(job()) == said == "outside its hours until 22:00 (UTC+00:00)"
        assert len([m for m in caplog.messages if m.startswith("outside the hours")]) == 1
    assert site_reports.progress(json.dumps({"doing": said}).encode())[0] == said
    for other in (said + " ", said.replace("22", "2x"), said.replace("until", "until Doomsday")):
        assert site_reports.progress(json.dumps({"doing": other}).encode())[0] == "?"
    now[0] = at("2026-01-05 22:00")
    assert door.closed(job()) == ""


def test_approval_is_asked_for_at_any_hour(tmp_path: Path) -> None:
    now = [at("2026-01-05 12:00")]
    assert closed_until(tmp_path, now, approve="ask").closed(job()) == "waiting for approval"


def test_neither_training_nor_evaluation_outside_the_hours_and_both_inside(tmp_path: Path) -> None:
    """Carl works from minute 2 on: rounds before close without him, and the end is the simulation's of all of it."""
    clock = Clock()
    run = Deployment(
        tmp_path, "fedit", rounds=6, quorum=0.6, deadline_s=40.0, grace_s=40.0,
        federation={"clock": clock}, post={"clock": clock},
    )  # fmt: skip
    midnight = at("2026-01-05 00:00")
    hours = open_hours.parsed("00:02-12:00, UTC")
    worked: list[float] = []

    def closed(_: Any) -> str:
        until = hours.closed(midnight + clock.now)
        worked.extend([] if until else [clock.now])
        return f"outside its hours until {until}" if until else ""

    run.sites["carl"].responder.held = HeldLetters(closed)
    run.run()
    took = [line["participants"] for line in run.metrics.lines[1:]]
    assert took[0] == ["anna", "bert"]
    assert took[-1] == list(SITES)
    assert min(worked) >= 120
    measured = [sorted(line["evaluation"]) for line in run.metrics.lines]
    assert measured[0] == ["anna", "bert"]
    assert measured[-1] == list(SITES)
    said = {i["doing"] for kind, i in run.events if kind == "progress" and i["client"] == "carl"}
    assert "outside its hours until 00:02 (UTC+00:00)" in said
