"""The status of a run while it runs and after it, of a deployment's folder, of a race; it disturbs nothing."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import watched_runs
from deployed import Deployment, Direct, Site

from fedft import run_file
from fedft.board import live_file, metrics_text, page, status_form, status_text
from fedft.board.live_file import LiveFile
from fedft.board.run_folders import FolderReader
from fedft.board.run_status import MAX_POINTS, RunReader
from fedft.cli import watch
from fedft.errors import ConfigError
from fedft.simulations import run as runs


@pytest.fixture(scope="module")
def small(tiny_base: Path) -> run_file.RunConfig:
    """Two rounds of one step for two clients of the quickstart."""
    sets = [f"model.id='{tiny_base}'", "clients.rank=4", "server.rounds=2", "local.steps=1", "local.batch_size=2"]
    return run_file.load(runs.QUICKSTART, [*sets, "data.clients=2", "eval.max_rows=2", "server.loggers=[]"])


def test_a_run_that_is_looked_at_says_where_it_is_and_ends_with_the_same_state(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_file, "WRITE_S", 0.005)
    seen: list[dict[str, Any]] = []
    reader = RunReader(tmp_path / "seen")

    def look(kind: str, info: Any) -> None:
        if kind in ("admitted", "measured", "line"):
            happened, ends = time.time(), time.monotonic() + 2
            while (live_file.read(tmp_path / "seen") or {})["updated"] < happened and time.monotonic() < ends:
                time.sleep(0.005)  # the file has a thread of its own
            seen.append(watched_runs.check(reader.status()))

    watched = runs.simulate(small, out=tmp_path / "seen", observe=look)
    unwatched = runs.simulate(small, out=tmp_path / "alone")
    assert watched.summary["state_digest"] == unwatched.summary["state_digest"]

    assert {s["state"] for s in seen} == {"running"}
    assert {"training", "evaluating"} <= {s["phase"] for s in seen}
    half = [s for s in seen if s["phase"] == "training" and len(s["answered"]) == 1 and len(s["missing"]) == 1]
    assert half, "no look fell between the two answers of a round"
    assert all({s["answered"][0], s["missing"][0]} == {x["name"] for x in s["sites"]} for s in half)
    assert [s["round"] for s in seen] == sorted(s["round"] for s in seen)
    assert {s["round"] for s in seen} >= {0, 1}

    done = watched_runs.check(reader.status())
    assert (done["state"], done["round"], done["rounds"], done["adapter"]) == ("finished", 2, 2, True)
    assert done["loss"] == watched.summary["final"]["loss"]
    for way in ("up", "down"):
        assert done[f"bytes_{way}"] == watched.summary[f"bytes_{way}"] == sum(s[way] for s in done["sites"])
    assert [p["round"] for p in done["curve"]] == [0, 1, 2]
    again = RunReader(tmp_path / "seen").status()
    assert done == {**again, **{k: done[k] for k in ("disk_free", "disk_bytes")}}
    assert again["disk_bytes"] > 10_000


def test_looking_writes_nothing_and_takes_no_lock(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run", finished=True)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    FolderReader(folder).status()
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def _between(folder: Path, version: int) -> bool:
    """Whether the file says that nothing is asked any more behind this state."""
    found = live_file.read(folder)
    return found is not None and (found["phase"], found["round"]) == ("between", version)


class WithoutCarl(Direct):
    """A network that does not reach one of the sites."""

    def nodes(self) -> Any:
        """All but carl."""
        return {name: node for name, node in super().nodes().items() if name != "carl"}


def test_a_deployment_says_who_came_who_did_not_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_file, "WRITE_S", 0.005)
    plain = Deployment(tmp_path / "plain")
    sites = {s: Site(s, i, tmp_path / "sites" / s, plain.config) for i, s in enumerate(plain.names)}
    house = Deployment(tmp_path / "run", sites=sites, link=WithoutCarl(sites), quorum=0.6, grace_s=0.0, deadline_s=30.0)
    (tmp_path / "run" / "config.toml").write_text(tomli_w.dumps(house.config.to_dict()))
    live = LiveFile(tmp_path / "run")
    house.federation.observe = house.post.observe = live
    house.run()
    ends = time.monotonic() + 2
    while not _between(tmp_path / "run", 4) and time.monotonic() < ends:
        time.sleep(0.01)  # the file has a thread of its own
    found = watched_runs.check(RunReader(tmp_path / "run").status())
    live("ended", {"folder": tmp_path, "summary": None})
    assert (found["state"], found["round"], found["at_work"]) == ("running", 4, 4)
    states = {s["name"]: (s["counted"], s["refused"]) for s in found["sites"]}
    assert states["anna"] == states["bert"] == (4, 0)
    assert states["carl"][0] == 0
    assert [s["state"] for s in found["sites"]] == ["answered", "answered", "absent"]
    assert found["refused"]["deadline"] == states["carl"][1] > 0
    assert {(r["client"], r["code"]) for r in found["refusals"]} == {("carl", "deadline")}
    stopped = RunReader(tmp_path / "run").status()
    assert stopped["state"] == "stopped"
    assert {s["name"]: s["state"] for s in stopped["sites"]} == {"anna": "idle", "bert": "idle", "carl": "absent"}
    assert "carl  deadline: no answer within" in "\n".join(status_text.lines(stopped))


def test_a_run_without_a_sign_of_life_is_silent_and_one_in_quarantine_has_its_reason(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    live = LiveFile(folder)
    live("enrolling", {"clients": ["south"]})
    live("round", {"round": 3, "asked": ["south"], "barred": ["north"]})
    live("ended", {"folder": folder, "summary": None})
    facts = json.loads((folder / live_file.NAME).read_text())
    (folder / live_file.NAME).write_text(json.dumps({**facts, "ended": False}))
    assert watched_runs.check(RunReader(folder).status())["state"] == "running"
    (folder / live_file.NAME).write_text(json.dumps({**facts, "ended": False, "updated": time.time() - 60}))
    found = watched_runs.check(RunReader(folder).status())
    assert (found["state"], found["phase"], found["deadline"]) == ("silent", None, None)
    assert found["barred"] == {"north": "norm: norm 9 is above 5"}
    assert {s["name"]: s["state"] for s in found["sites"]} == {"north": "barred", "south": "idle"}
    text = "\n".join(status_text.lines(found))
    assert "nothing heard of it for 60 s" in text
    assert "barred   north: norm: norm 9 is above 5" in text


def test_only_what_was_added_is_read_and_what_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run", versions=3)
    reader = RunReader(folder)
    assert reader.status()["bytes_up"] == 305
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(watched_runs.line(4)) + "\n" + json.dumps(watched_runs.line(5))[:40])
    assert (reader.status()["round"], reader.status()["bytes_up"]) == (4, 405)  # half a line is not there yet
    watched_runs.folder(tmp_path / "shorter", versions=1)
    (tmp_path / "shorter" / "metrics.jsonl").replace(folder / "metrics.jsonl")  # as a resumed run cuts it
    found = watched_runs.check(reader.status())
    assert (found["round"], found["bytes_up"], found["refused"]) == (1, 105, {"norm": 1})
    assert found == {**RunReader(folder).status(), "disk_free": found["disk_free"], "disk_bytes": found["disk_bytes"]}


def test_a_long_curve_is_thinned_and_keeps_its_last_point(tmp_path: Path) -> None:
    curve = RunReader(watched_runs.folder(tmp_path / "run", versions=2 * MAX_POINTS + 1)).status()["curve"]
    assert MAX_POINTS / 2 < len(curve) <= MAX_POINTS
    assert curve[-1]["round"] == 2 * MAX_POINTS + 1


def test_a_race_is_a_line_for_each_of_its_runs(tmp_path: Path) -> None:
    for method in ("fedit", "flora"):
        watched_runs.folder(tmp_path / method / "seed-0", strategy=method, finished=method == "fedit")
    (tmp_path / "local" / "seed-0").mkdir(parents=True)
    result = {"before": 3.0, "after": 2.0, "rounds": 6.0, "bytes": 0.0}
    (tmp_path / "local" / "seed-0" / "result.json").write_text(json.dumps(result))
    found = FolderReader(tmp_path).status()
    told = {r["name"]: (r["state"], r["round"], r["loss"]) for r in found["runs"]}
    assert told["fedit/seed-0"] == ("finished", 3, 2.25)
    assert told["flora/seed-0"] == ("stopped", 3, 2.25)
    assert told["local/seed-0"] == ("finished", 6, 2.0)
    assert len(status_text.lines(found)) == 4
    assert FolderReader(tmp_path).status("flora/seed-0")["strategy"] == "flora"


def test_the_runs_of_a_queue_stand_in_its_order_with_those_that_wait(tmp_path: Path) -> None:
    waiting = [{"name": n, "state": "waiting", "why": ""} for n in ("z", "b", "a", "..", "x/y")]
    (tmp_path / "queue.json").write_text(json.dumps({"form": 1, "runs": waiting}))
    told = [(r["name"], r["state"]) for r in FolderReader(tmp_path).status()["runs"]]
    assert told == [("z", "waiting"), ("b", "waiting"), ("a", "waiting")]
    watched_runs.folder(tmp_path / "z", finished=True)
    watched_runs.folder(tmp_path / "by hand")
    found = FolderReader(tmp_path).status()
    told = [(r["name"], r["state"]) for r in found["runs"]]
    assert told == [("z", "finished"), ("b", "waiting"), ("a", "waiting"), ("by hand", "stopped")]
    assert len(status_text.lines(found)) == 5
    assert "waiting" in page.page(found, "nonce")
    with pytest.raises(ConfigError, match="no run"):
        FolderReader(tmp_path).status("a")


@pytest.mark.parametrize("said", ["", "[]", '{"runs": 1}', '{"runs": [{"name": []}]}', '{"runs": [1]}'])
def test_a_queue_s_file_that_says_nothing_is_passed_over(tmp_path: Path, said: str) -> None:
    watched_runs.folder(tmp_path / "z")
    (tmp_path / "queue.json").write_text(said)
    assert [r["name"] for r in FolderReader(tmp_path).status()["runs"]] == ["z"]


@pytest.mark.parametrize("name", ["../secret", "fedit/../../secret", "/etc", "nothing", "fedit"])
def test_a_name_leads_to_no_other_folder(tmp_path: Path, name: str) -> None:
    watched_runs.folder(tmp_path / "secret", finished=True)
    watched_runs.folder(tmp_path / "race" / "fedit" / "seed-0")
    reader = FolderReader(tmp_path / "race")
    with pytest.raises(ConfigError, match="has no run"):
        reader.status(name)
    assert reader.adapter(name) is None


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[strategy]\nname = 3")
    for folder, said in ((tmp_path, "cannot be read as a run's"), (tmp_path / "none", "no such folder")):
        with pytest.raises(ConfigError, match=said) as e:
            watch.status(str(folder))
        assert "\n" not in str(e.value)


def test_what_others_wrote_moves_no_cursor(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    evil = {"client": "\x1b[2Jnorth\n", "code": "norm", "reason": "\x1b]0;owned\x07"}
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(watched_runs.line(4, refused=[evil])) + "\n")
    text = "\n".join(status_text.lines(RunReader(folder).status()))
    assert "owned" in text
    assert text.replace("\n", "").isprintable()


def test_the_command_prints_lines_or_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = watched_runs.folder(tmp_path / "run", finished=True)
    watch.status(str(folder))
    assert "3 of 6 rounds done; finished" in capsys.readouterr().out
    watch.status(str(folder), as_json=True)
    watched_runs.check(json.loads(capsys.readouterr().out))


def told_by(folder: Path, *events: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    """The status of a running run whose process has told of these events; `more`: further keys of status.json."""
    live = LiveFile(folder)
    for kind, info in events:
        live(kind, info)
    live("ended", {"folder": folder, "summary": None})
    facts = json.loads((folder / live_file.NAME).read_text())
    (folder / live_file.NAME).write_text(json.dumps({**facts, "ended": False, **more}))
    return watched_runs.check(RunReader(folder).status())


ASKED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("enrolling", {"clients": ["north", "south", "west"]}),
    ("round", {"round": 3, "asked": ["north", "south", "west"]}),
    ("asking", {"round": 3, "clients": ["north", "south", "west"], "need": 2, "deadline_s": 600.0, "grace_s": 5.0}),
)


def test_who_waits_for_its_operator_or_its_hours_is_held_and_other_words_are_shown_as_they_are(tmp_path: Path) -> None:
    said = {"north": "waiting for approval", "south": "outside its hours until 22:00", "west": "<i>knitting</i>\x1b"}
    words = [("progress", {"client": c, "round": 3, "doing": text}) for c, text in said.items()]
    found = told_by(watched_runs.folder(tmp_path / "run"), *ASKED, *words)
    sites = {s["name"]: (s["state"], s["doing"], s["left_s"]) for s in found["sites"]}
    assert sites == {
        "north": ("held", said["north"], None), "south": ("held", said["south"], None),
        "west": ("working", said["west"], None),
    }  # fmt: skip
    text = "\n".join(status_text.lines(found))
    assert "held: waiting for approval" in text
    assert "south (outside its hours until 22:00)" in text
    assert text.replace("\n", "").isprintable()
    shown = page.page(found, "nonce")
    assert "working: &lt;i&gt;knitting&lt;/i&gt;" in shown
    assert "held: outside its hours until 22:00" in shown


def test_who_has_left_is_waited_for_no_more_and_who_joined_again_is(tmp_path: Path) -> None:
    left = [("left", {"client": "south", "why": "revoked"}), ("left", {"client": "west", "why": "removed"})]
    steered = {"paused": False, "removed": ["gone", "north"], "changed": {}}
    again = ("joined", {"client": "west", "round": 3, "rank": 4})
    found = told_by(watched_runs.folder(tmp_path / "run"), *ASKED, *left, again, steered=steered)
    sites = {s["name"]: (s["state"], s["doing"]) for s in found["sites"]}
    assert sites["south"] == ("left", "revoked")
    assert sites["north"] == ("left", "removed by the server's operator")
    assert sites["west"][0] != "left"
    assert "left: revoked" in page.page(found, "nonce")


def test_a_run_that_its_operator_has_paused_says_so_and_what_was_changed(tmp_path: Path) -> None:
    steered = {"paused": True, "removed": [], "changed": {"server.rounds": 9}}
    found = told_by(watched_runs.folder(tmp_path / "a" / "run"), *ASKED, steered=steered)
    assert status_text.state_line(found, time.time()).endswith("0 of 3 have answered, 2 are enough; then it pauses")
    assert "changed  server.rounds = 9" in status_text.lines(found)
    found = told_by(watched_runs.folder(tmp_path / "a" / "run"), *ASKED, ("line", {"version": 3}), steered=steered)
    assert status_text.state_line(found, time.time()) == "3 of 6 rounds done; paused by its operator"
    assert [r["state"] for r in FolderReader(tmp_path / "a").status()["runs"]] == ["paused"]
    assert 'fedft_state{run="r",state="paused"} 1\n' in metrics_text.text({"r": found})
    assert 'fedft_state{run="r",state="running"} 0\n' in metrics_text.text({"r": found})


@pytest.mark.parametrize("steered", [None, 3, [], {"paused": 1}, {"paused": True, "removed": "x", "changed": {}}])
def test_what_is_no_word_of_an_operator_is_passed_over(tmp_path: Path, steered: Any) -> None:
    assert told_by(watched_runs.folder(tmp_path / "run"), *ASKED, steered=steered)["steered"] == {}


def test_a_phase_that_is_not_known_is_shown_as_it_is(tmp_path: Path) -> None:
    found = told_by(watched_runs.folder(tmp_path / "run"), *ASKED, phase="<b>summing</b>")
    assert status_text.state_line(found, time.time()) == "3 of 6 rounds done; <b>summing</b>"
    assert "&lt;b&gt;summing" in page.page(found, "nonce")


def test_a_site_whose_base_is_in_another_precision_says_its_bits(tmp_path: Path) -> None:
    """Where they are any that there are; the status of a server of before says none, and odd ones are no status."""
    folder = watched_runs.folder(tmp_path / "run")
    said = {"north": {"loss": 2.5, "bits": 4.0}, "south": {"loss": 1.5}, "west": {"loss": 1.0, "bits": -1e300}}
    with open(folder / "metrics.jsonl", "a") as lines:
        lines.write(json.dumps(watched_runs.line(4, evaluation=said)) + "\n")
    found = watched_runs.check(RunReader(folder).status())
    assert {s["name"]: s["bits"] for s in found["sites"]} == {"north": 4, "south": None, "west": None}
    assert [x.split()[0] for x in status_text.lines(found) if "base of 4 bits" in x] == ["north"]
    assert page.page(found, "nonce").count("base of 4 bits") == 1
    assert not status_form.fault(found)
    found["sites"][0]["bits"] = "<b>"
    assert "'sites'" in status_form.fault(found)
    for site in found["sites"]:
        del site["bits"]
    assert not status_form.fault(found)
    assert "bits" not in page.page(found, "nonce")


def test_it_says_who_sets_the_pace_when_each_is_done_and_what_ends_the_round(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    told_by(folder, *ASKED)
    facts = json.loads((folder / live_file.NAME).read_text())
    for name, took in (("north", 100.0), ("south", 20.0), ("west", 40.0)):
        facts["sites"][name] = {"joined": True, "took": [took - 5, took + 5], "asked": time.time() - 10}
    facts["deadline"] = time.time() + 600
    facts["sites"]["west"] |= {"doing": "training", "step": 3, "steps": 12, "left_s": 33.0}
    (folder / live_file.NAME).write_text(json.dumps(facts))
    found = watched_runs.check(RunReader(folder).status())
    left = {s["name"]: s["left_s"] for s in found["sites"]}
    assert (left["north"], left["south"], left["west"]) == (pytest.approx(90, abs=5), pytest.approx(10, abs=5), 33.0)
    lines = status_text.lines(found)
    assert "pace     north answers last, in 100 s; the site in the middle in 40 s" in lines
    assert any(x.startswith("deadline") and "in 10 min" in x for x in lines)
    (west,) = [x for x in lines if x.startswith("west")]
    assert "working: step 3 of 12" in west
    assert west.endswith("40 s  33 s")
    assert "north answers last" in page.page(found, "nonce")


def test_what_was_spent_of_privacy_is_on_the_board_in_the_text_and_in_the_metrics(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run", versions=2)
    plain = watched_runs.check(RunReader(folder).status())
    assert (plain["epsilon"], plain["privacy"]) == (None, None)
    assert not any(head == "privacy" for head, _ in status_text.facts(plain, time.time()))
    with open(folder / "config.toml", "a") as f:
        f.write('\n[privacy]\nmode = "central-dp"\ndelta = 1e-3\n')
    reader = RunReader(folder)
    assert dict(status_text.facts(reader.status(), 0.0))["privacy"] == "central-dp: epsilon none (nothing is spent yet)"
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(watched_runs.line(3) | {"epsilon": 1.23456, "delta": 1e-3, "rounds_left": 4}) + "\n")
    found = watched_runs.check(reader.status())
    assert found["epsilon"] == 1.23456
    said = "central-dp: epsilon 1.23 at delta 0.001, 4 rounds left"
    assert dict(status_text.facts(found, 0.0))["privacy"] == said
    assert said in page.page(found, "nonce")
    assert 'fedft_epsilon{run="r"} 1.23456' in metrics_text.text({"r": found})
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(watched_runs.line(4) | {"epsilon": None, "epsilon_why": "seeded noise"}) + "\n")
    assert dict(status_text.facts(reader.status(), 0.0))["privacy"] == "central-dp: epsilon none (seeded noise)"


@pytest.mark.parametrize(
    "said", ["x", {"mode": "m"}, {"mode": "m", "delta": "1", "epsilon_why": None, "rounds_left": 1}]
)
def test_a_status_whose_privacy_cannot_be_shown_is_none_and_one_without_it_is(tmp_path: Path, said: Any) -> None:
    found = RunReader(watched_runs.folder(tmp_path / "run")).status()
    before = {k: x for k, x in found.items() if k not in ("privacy", "epsilon")}
    assert status_form.fault(before) == ""
    assert "'privacy' is absent or not as it should be" in status_form.fault(found | {"privacy": said})
