"""The dashboard for Grafana asks for what /metrics offers, all of it, and has the form that Grafana imports."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import watched_runs

from fedft.board import metrics_text
from fedft.board.run_status import RunReader

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "server" / "grafana.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
VARIABLES = {v["name"]: v for v in DASHBOARD["templating"]["list"]}
QUERIES = [t["expr"] for p in PANELS for t in p["targets"]] + [VARIABLES["run"]["definition"]]


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The labels of each metric of a run of which everything is known."""
    status = RunReader(watched_runs.folder(tmp_path_factory.mktemp("all") / "run")).status()
    unknown = {key: 1.0 for key, value in status.items() if value is None and key != "floor"}
    sites = [{key: 1.0 if value is None else value for key, value in site.items()} for site in status["sites"]]
    text = metrics_text.text({"run": {**status, **unknown, "sites": sites}})
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"(?m)^# TYPE (\w+)", text)}
    for name, labels in re.findall(r"(?m)^(\w+)\{(.*)\}", text):
        found[name] |= set(re.findall(r'(\w+)="', labels))
    assert len(found) > 15
    return found


def test_every_metric_that_is_asked_for_is_offered_and_the_other_way_round(offered: dict[str, set[str]]) -> None:
    asked = {name for query in QUERIES for name in re.findall(r"\bfedft_\w+", query)}
    assert asked == set(offered)


def test_every_label_that_is_shown_or_summed_by_is_there(offered: dict[str, set[str]]) -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            by = re.findall(r"by \(([\w, ]+)\)", target["expr"])
            shown = {label.strip() for part in by for label in part.split(",")}
            shown |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            labels = set.union(*(offered[n] for n in re.findall(r"\bfedft_\w+", target["expr"])))
            assert shown <= labels, target["expr"]
            assert target["expr"].count('{run=~"$run"}') == len(re.findall(r"\bfedft_\w+", target["expr"]))
            assert target["expr"].count("(") == target["expr"].count(")")


def test_every_metric_is_documented(offered: dict[str, set[str]]) -> None:
    text = (ROOT / "OPERATING.md").read_text(encoding="utf-8")
    missing = [name for name in offered if f"`{name}`" not in text]
    assert not missing, f"OPERATING.md does not name {missing}"
    strange = set(re.findall(r"`(fedft_\w+)`", text)) - set(offered)
    assert not strange, f"OPERATING.md names {strange}, which /metrics does not offer"


def test_it_has_the_form_that_grafana_imports() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["id"] is None  # else an import would take another dashboard's place
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    assert DASHBOARD["title"]
    assert {"from", "to"} <= DASHBOARD["time"].keys()
    ids = [p["id"] for p in PANELS]
    assert len(ids) == len(set(ids)) > 10
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert VARIABLES["datasource"]["query"] == "prometheus"
    theirs = {"type": "prometheus", "uid": "${datasource}"}
    assert VARIABLES["run"]["datasource"] == theirs
    assert list(VARIABLES) == ["datasource", "run"]  # the second asks the first
    declared = {r["id"] for r in DASHBOARD["__requires"] if r["type"] == "panel"}
    for p in PANELS:
        assert p["type"] in declared
        assert p["title"]
        assert p["datasource"] == theirs
        assert {"defaults", "overrides"} <= p["fieldConfig"].keys()
        refs = [t["refId"] for t in p["targets"]]
        assert len(refs) == len(set(refs)) > 0
        assert all(t["datasource"] == theirs for t in p["targets"])
    assert declared == {p["type"] for p in PANELS}


def test_no_panel_lies_on_another() -> None:
    taken: dict[tuple[int, int], int] = {}
    for p in PANELS:
        at = p["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), p["id"]) == p["id"]
