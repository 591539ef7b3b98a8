"""`fedft doctor` at a site: whether it works now, how fast, and who waits for a word."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from asked_site import SITE, job, site_file

from fedft.cli import checks_site, doctor
from fedft.cli.checks_machine import FAIL, OK, WARN
from fedft.client.known_runs import KnownRuns

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("hours", "said"),
    [
        (None, "at all hours"),
        ("10:00-14:00, UTC", "open"),
        ("22:00-06:00, UTC", "closed until 22:00 (UTC+00:00)"),
        ("sat-sun, UTC", "closed until Sat 00:00 (UTC+00:00)"),
    ],
)
def test_hours_are_said_as_they_are_now(hours: str | None, said: str) -> None:
    found = checks_site.hours(hours, NOON)
    assert found.state == OK
    assert found.found.endswith(said)


@pytest.mark.parametrize(
    ("rate", "state", "said"),
    [(None, OK, "not bounded"), (5, WARN, "100 MiB take 168 s"), (100, OK, "100 MiB take 8 s")],
)
def test_a_rate_is_said_in_seconds(rate: float | None, state: str, said: str) -> None:
    found = checks_site.rate(rate)
    assert (found.state, bool(found.remedy)) == (state, state == WARN)
    assert said in found.found


def test_a_run_that_waits_is_a_warning_with_what_to_type(tmp_path: Path) -> None:
    asks = replace(SITE, site=replace(SITE.site, state=str(tmp_path)), policy=replace(SITE.policy, approve="ask"))
    assert [f.state for f in checks_site.approval(asks)] == [OK]
    known = KnownRuns(tmp_path)
    known.note(job())
    (found,) = checks_site.approval(asks)
    assert found.state == WARN
    assert "1 waiting" in found.found
    assert "fedft site approve" in found.remedy
    known.decide(known.find(job().run), "refused")
    (found,) = checks_site.approval(asks)
    assert (found.state, found.found) == (OK, "ask: 0 runs approved, 1 refused, 0 waiting")
    (found,) = checks_site.approval(replace(asks, policy=SITE.policy))
    assert found.found.endswith("1 refused by hand")


def test_the_doctor_shows_them_and_a_bad_text_fails_the_site(tmp_path: Path) -> None:
    file = site_file(tmp_path, 'hours = "sat-sun"\nmax_mbit_s = 5\n')
    rows = {row.check: row for row in doctor._site(file, no_model=True)}
    assert {"hours", "rate", "approval", "state"} <= rows.keys()
    assert "free" in rows["state"].found
    file.write_text(file.read_text().replace("sat-sun", "weekend"))
    rows = {row.check: row for row in doctor._site(file, no_model=True)}
    assert rows["site"].state == FAIL
    assert "weekend" in rows["site"].found
