"""Many cards at once: all or none, each fault in its line, in time that grows with their number; edits do not meet."""

import threading
import time
from pathlib import Path

import pytest
from cards import new_card
from typer.testing import CliRunner

from fedft import durable
from fedft.cli.keys import app
from fedft.errors import ConfigError
from fedft.security import new_keys, roster


def test_many_cards_are_enrolled_in_their_order(server: Path, tmp_path: Path) -> None:
    cards = [new_card(tmp_path, f"s{i}") for i in (3, 1, 2)]
    done = CliRunner().invoke(app, ["enrol", str(server), *map(str, cards)], catch_exceptions=False)
    assert list(roster.load_roster(server / "roster.toml").members) == ["s3", "s1", "s2"]
    for card in cards:
        assert roster.read_card(card).fingerprint() in done.output


def test_one_card_at_fault_and_nothing_is_enrolled(server: Path, tmp_path: Path) -> None:
    """Each fault is one line that names its card; the good cards have none."""
    path = server / "roster.toml"
    roster.enrol(path, new_card(tmp_path, "here"))
    before = path.read_bytes()
    good, stolen, twice = (new_card(tmp_path, n) for n in ("good", "stolen", "twice"))
    stolen.write_text(good.read_text().replace('"good"', '"stolen"'), encoding="utf-8")
    (tmp_path / "other").mkdir()
    again, here = new_card(tmp_path / "other", "twice"), new_card(tmp_path / "other", "here")
    none, bad = tmp_path / "none.card.toml", tmp_path / "bad.card.toml"
    bad.write_text("[[site]]\nname = 3", encoding="utf-8")
    with pytest.raises(ConfigError) as e:
        roster.enrol_all(path, [good, stolen, twice, again, here, none, bad])
    assert path.read_bytes() == before
    *lines, last = str(e.value).splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(c) for c in (stolen, again, here, none, bad)]
    said = (
        "the key of 'stolen' is also that of 'good'",
        "another card is of a site 'twice'",
        "`fedft keys rotate` at the",
    )
    assert all(text in line for text, line in zip(said, lines, strict=False))
    assert last == "nothing was enrolled: 5 of 7 cards are at fault"
    assert [s.name for s in roster.enrol_all(path, [good, twice, good])] == ["good", "twice", "good"]
    assert list(roster.load_roster(path).members) == ["here", "good", "twice"]


def test_a_thousand_faults_are_a_few_lines(server: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        roster.enrol_all(server / "roster.toml", [tmp_path / f"{i}" for i in range(1000)])
    lines = str(e.value).splitlines()
    assert len(lines) == roster.MAX_FAULTS + 1
    assert lines[-1].endswith("1000 of 1000 cards are at fault, 980 of them not shown")


def test_a_card_costs_the_same_among_few_and_among_many(tmp_path: Path, hosts: list[str]) -> None:
    """CPU seconds per card at 500 and at 20, the best of three each; a quadratic way would be 25 times as dear."""
    cards = [new_card(tmp_path, f"s{i}") for i in range(500)]

    def per_card(n: int, again: int) -> float:
        folder = tmp_path / f"{n}-{again}"
        new_keys.make_server(folder, hosts)
        began = time.process_time()
        roster.enrol_all(folder / "roster.toml", cards[:n])
        return (time.process_time() - began) / n

    few, many = (min(per_card(n, again) for again in range(3)) for n in (20, 500))
    assert many < 2 * few


def test_a_roster_that_could_not_be_read_again_is_not_written(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = server / "roster.toml"
    roster.enrol(path, new_card(tmp_path, "a"))
    before = path.read_bytes()
    monkeypatch.setattr(roster, "MAX_FILE_BYTES", len(before) + 100)
    with pytest.raises(ConfigError, match=r"at most .* are read; remove old sites"):
        roster.enrol(path, new_card(tmp_path, "b"))
    assert path.read_bytes() == before


def test_edits_at_the_same_time_all_count(server: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    cards = [new_card(tmp_path, f"s{i}") for i in range(16)]
    threads = [threading.Thread(target=roster.enrol, args=(path, card)) for card in cards]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(roster.load_roster(path).members) == sorted(f"s{i}" for i in range(16))


def test_who_holds_the_roster_for_long_is_told_of(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster, "WAIT_S", 0.05)
    path = server / "roster.toml"
    with (
        durable.alone(path.with_name("roster.toml.lock"), "taken"),
        pytest.raises(ConfigError, match="another process"),
    ):
        roster.enrol(path, new_card(tmp_path, "a"))
    roster.enrol(path, tmp_path / "a.card.toml")
