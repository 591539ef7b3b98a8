"""What the server of a deployment adds to the engine: a roster that may change, an audit, a run told from others."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from fedft.errors import RejectedUpdate
from fedft.security import new_keys
from fedft.security import roster as keys
from fedft.server import app, run_outputs
from fedft.server.audit import Audit
from fedft.server.roster_file import RosterFile


@pytest.fixture
def roster(tmp_path: Path) -> Path:
    new_keys.make_server(tmp_path / "server", ["localhost"], 30)
    for name in ("anna", "bert"):
        keys.enrol(tmp_path / "server" / "roster.toml", new_keys.make_site(tmp_path / name, name))
    return tmp_path / "server" / "roster.toml"


def test_a_revocation_takes_effect_while_the_server_runs(roster: Path) -> None:
    live = RosterFile(roster)
    live.key_of("bert")
    keys.revoke(roster, "bert")
    with pytest.raises(RejectedUpdate, match="revoked"):
        live.key_of("bert")
    assert set(live.nodes()) == {"anna"}
    live.key_of("anna")


def test_who_is_enrolled_while_the_server_runs_may_come_and_who_is_taken_out_may_not(roster: Path) -> None:
    live = RosterFile(roster)
    before = roster.read_text()
    assert set(live.nodes()) == set(live.present()) == {"anna", "bert"}
    keys.enrol(roster, new_keys.make_site(roster.parents[1] / "carl", "carl"))
    assert set(live.nodes()) == set(live.present()) == {"anna", "bert", "carl"}
    live.key_of("carl")
    roster.write_text(before)
    assert set(live.nodes()) == set(live.present()) == {"anna", "bert"}
    assert [live.why_not(name) for name in ("anna", "carl")] == ["", "removed"]


def test_a_roster_that_became_unreadable_is_told_of_and_the_old_one_holds(
    roster: Path, caplog: pytest.LogCaptureFixture
) -> None:
    live = RosterFile(roster)
    roster.write_text("[[site]\n")
    with caplog.at_level(logging.ERROR):
        live.key_of("bert")
    assert "going on with the roster as it was" in caplog.text


def test_every_refusal_is_a_line_of_the_audit_without_its_text(tmp_path: Path) -> None:
    heard: list[Any] = []
    audit = Audit(tmp_path / "audit.jsonl", lambda kind, info: heard.append(kind))
    audit.begin("f" * 16, -1)
    audit("round", {"round": 7})
    refusal = {"client": "anna", "code": "norm", "reason": "words of a peer", "size": 9, "sha256": "ab", "proven": True}
    audit("refused", refusal)
    _, line = map(json.loads, (tmp_path / "audit.jsonl").read_text().splitlines())
    assert line.pop("time")
    assert len(line.pop("before")) == 64
    assert line == {
        "event": "refused",
        "round": 7,
        "site": "anna",
        "code": "norm",
        "size": 9,
        "sha256": "ab",
        "proven": True,
    }
    assert heard == ["round", "refused"]


def test_a_run_keeps_its_salt_and_another_one_has_another(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    salt = app._salt(tmp_path / "a" / "salt")
    assert app._salt(tmp_path / "a" / "salt") == salt
    assert app._salt(tmp_path / "b" / "salt") != salt


def test_sites_that_never_took_part_are_named_with_why() -> None:
    late = {"client": "bert", "code": "deadline", "reason": "no answer within 60.0 s"}
    lines: list[dict[str, Any]] = [
        {"version": 0, "refused": [{**late, "code": "norm"}]},
        {"version": 1, "round": 0, "participants": ["anna"], "refused": [late, {**late, "client": "dora"}]},
        {"version": 2, "round": 1, "participants": ["anna", "dora"]},
    ]
    found = run_outputs.never_took_part(["dora", "carl", "bert", "anna"], lines)
    assert list(found.items()) == [("bert", "deadline: no answer within 60.0 s"), ("carl", "was not asked")]
    assert run_outputs.never_took_part(["anna"], lines) == {}
