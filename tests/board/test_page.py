"""The page and the metrics: they stand alone, escape what others wrote, and say what the status says."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import watched_runs

from fedft.board import metrics_text, page
from fedft.board.live_file import LiveFile
from fedft.board.run_folders import FolderReader
from fedft.board.run_status import RunReader

EVIL = '<script>alert(\'x\')</script>&"<img src=x onerror=y> \\ \n{run="z"} ünï'


class Tags(HTMLParser):
    """The tags of a page, and all that could load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.named: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "style")]
        self.named += [k for k, _ in attrs if k.startswith("on")]


@pytest.fixture
def status(tmp_path: Path) -> dict[str, Any]:
    return RunReader(watched_runs.folder(tmp_path / "run", finished=True)).status()


@pytest.fixture
def evil(tmp_path: Path) -> dict[str, Any]:
    """The status of a run whose sites have names, and are refused for reasons, that are an attack."""
    folder = watched_runs.folder(tmp_path / "run")
    refused = {"client": EVIL, "code": EVIL, "reason": EVIL}
    with open(folder / "metrics.jsonl", "a") as f:
        f.write(json.dumps(watched_runs.line(4, refused=[refused], participants=[EVIL])) + "\n")
    live = LiveFile(folder)
    live("enrolling", {"clients": [EVIL]})
    live("round", {"round": 4, "asked": [EVIL], "barred": [EVIL]})
    live("progress", {"client": EVIL, "doing": EVIL})
    live("ended", {"folder": folder, "summary": None})
    facts = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps({**facts, "ended": False}))
    found = RunReader(folder).status()
    assert (found["state"], found["missing"]) == ("running", [EVIL])
    return {**found, "name": EVIL, "strategy": EVIL, "model": EVIL}


def test_the_page_loads_nothing_from_elsewhere(status: dict[str, Any]) -> None:
    text = page.page(status, "nonce", token="t/+&")
    found = Tags(text)
    assert found.loads
    assert all(re.match(r"/[a-z]", source) for source in found.loads)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert not {"link", "iframe", "object", "img", "form", "base"} & set(found.tags)
    assert not found.named
    assert (found.tags.count("script"), found.tags.count("style")) == (1, 1)


def test_what_others_wrote_is_text(evil: dict[str, Any]) -> None:
    text = page.page(evil, "nonce", token=EVIL, run=EVIL)
    found = Tags(text)
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert not found.named
    assert text.count("&lt;script&gt;") > 8
    assert all(re.match(r"/[a-z.]*\?[\w%+.&=-]*$", source) for source in found.loads)


def test_the_page_says_what_the_status_says(status: dict[str, Any]) -> None:
    text = page.page(status, "nonce")
    assert "3 of 6 rounds done; finished" in text
    for said in ("2.2500", "north", "south", "norm 9 is above 5", "305 B up", "Download the adapter"):
        assert said in text, said
    found = Tags(text)
    assert found.tags.count("svg") == 2
    assert found.tags.count("table") == found.tags.count("caption") == 2
    assert set(re.findall(r"<th (\w+)=", text)) == {"scope"}
    assert re.search(r'role="img" aria-label="Loss by round: held out from 3.0000 to 2.2500; training', text)


def test_a_run_before_its_first_line_has_a_page(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    text = page.page(watched_runs.check(RunReader(folder).status()), "nonce")
    assert "0 of 6 rounds done" in text
    assert "svg" not in Tags(text).tags


def test_of_many_sites_those_that_are_waited_for_are_shown(status: dict[str, Any]) -> None:
    sites = [{**status["sites"][0], "name": f"s{i}", "state": "idle"} for i in range(page.MAX_SITES + 7)]
    sites.append({**status["sites"][0], "name": "late", "state": "waiting"})
    text = page.page({**status, "sites": sites}, "nonce")
    assert ">late</th>" in text
    assert "8 more sites are in status.json" in text


def test_numbers_that_are_none_are_unknown_everywhere(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as f:
        evaluation = {"north": {"loss": float("inf")}}
        f.write(
            json.dumps(watched_runs.line(4, loss=float("nan"), train_loss=float("nan"), evaluation=evaluation)) + "\n"
        )
    found = watched_runs.check(RunReader(folder).status())
    json.dumps(found, allow_nan=False)
    assert (found["round"], found["loss"], found["train_loss"]) == (4, 2.25, None)
    assert "nan" not in metrics_text.text({"run": found}).lower()


def test_the_page_of_a_race_leads_to_its_runs(tmp_path: Path) -> None:
    for method in ("fedit", "flora"):
        watched_runs.folder(tmp_path / method / "seed-0", strategy=method)
    reader = FolderReader(tmp_path)
    text = page.page(reader.status(), "nonce", token="tok")
    assert 'href="/?run=flora%2Fseed-0&amp;token=tok"' in text
    one = page.page(reader.status("flora/seed-0"), "nonce", token="tok", run="flora/seed-0")
    assert 'href="/status.json?run=flora%2Fseed-0&amp;token=tok"' in one
    assert 'href="/?token=tok"' in one
    assert "<h1>flora/seed-0</h1>" in one


# Prometheus' text form

LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"([a-zA-Z_:][a-zA-Z0-9_:]*)\{{({LABEL}(?:,{LABEL})*)\}} (-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def parsed(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """name -> labels -> value. Raises AssertionError for anything that the form does not allow."""
    assert text.endswith("\n")
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    name, kind, helped = "", "", ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            helped = line.split(" ")[2]
            assert helped not in found, f"{helped} is there twice"
        elif line.startswith("# TYPE "):
            name, kind = line.split(" ")[2:]
            assert name == helped
            assert kind in ("gauge", "counter")
            assert name.endswith("_total") == (kind == "counter")
            found[name] = {}
        else:
            match = SAMPLE.fullmatch(line)
            assert match, f"not a sample: {line!r}"
            assert match[1] == name
            labels = tuple((k, _plain(v)) for k, v in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]))
            assert labels not in found[name], f"{line} is there twice"
            found[name][labels] = float(match[3])
    assert all(found.values())
    return found


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: {"n": "\n"}.get(m[1], m[1]), value)


def test_the_metrics_parse_and_say_what_the_status_says(status: dict[str, Any]) -> None:
    found = parsed(metrics_text.text({"a": status, "b": status}))
    for run in ("a", "b"):
        of = {name: samples.get((("run", run),)) for name, samples in found.items()}
        assert (of["fedft_round"], of["fedft_rounds"], of["fedft_loss"]) == (3, 6, 2.25)
        assert (of["fedft_bytes_up_total"], of["fedft_bytes_down_total"]) == (305, 907)
    assert found["fedft_refused_total"][(("run", "a"), ("code", "norm"))] == 1
    assert found["fedft_site_counted_total"][(("run", "a"), ("site", "north"))] == 2
    assert sum(v for k, v in found["fedft_sites"].items() if ("run", "a") in k) == 2
    assert [dict(k)["state"] for k, v in found["fedft_state"].items() if v] == ["finished", "finished"]


def test_labels_with_whatever_signs_come_back_as_they_were(evil: dict[str, Any]) -> None:
    found = parsed(metrics_text.text({EVIL: evil}))
    assert (("run", EVIL), ("site", EVIL)) in found["fedft_site_counted_total"]
    assert (("run", EVIL), ("code", EVIL)) in found["fedft_refused_total"]


def test_no_run_has_no_metrics() -> None:
    assert metrics_text.text({}) == ""
