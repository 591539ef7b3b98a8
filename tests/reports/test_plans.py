"""The part "Plans": what was asked, who was slow, and nothing of the kind for runs that say nothing of it."""

import base64
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made_up_runs import compared, lines, planned

from fedft.reports import heat_map, html_report, plan_facts, plans, plots
from fedft.reports.heat_map import Cell

EVIL = '<script>alert("x")</script>&'


def drawn(page: str) -> list[str]:
    return [base64.b64decode(found).decode() for found in re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)]


def section(*runs: tuple[str, list[Any]]) -> str:
    return plans.section(runs, html_report._image)


def cells(page: str) -> list[list[str]]:
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]


def test_a_run_without_plans_and_seconds_is_left_out() -> None:
    assert section(("plain", lines())) == ""
    page = section(("plain", lines()), ("planned", planned()))
    assert re.findall(r"<h3>(.*?)</h3>", page) == ["planned"]


def test_every_client_has_its_row_with_its_last_plan_and_its_seconds() -> None:
    found = cells(section(("planned", planned(clients=3, rounds=5, off=1.2))))
    assert found[0] == [
        "client", "turns", "rank", "batch", "bits", "steps", "ratio", "predicted s", "measured s",
        "measured / predicted", "set the pace",
    ]  # fmt: skip
    assert found[1:] == [
        ["site-0", "5", "16", "2", "16", "7", "0", "3", "3.67", "1.22", ""],
        ["site-1", "5", "8", "4", "4", "7", "0.1", "4", "4.9", "1.22", ""],
        ["site-2", "5", "16", "8", "16", "7", "0.2", "5", "6.12", "1.22", "5"],
    ]


def test_seconds_alone_show_who_set_the_pace() -> None:
    """Of those that count: who was refused sets none."""
    run = lines(rounds=2)
    for line, last in zip(run[1:], ("b", "a"), strict=True):
        line |= {"reply_s": {"a": 1.0, "b": 2.0, "late": 9.0}, "participants": sorted({"a", last})}
    assert plan_facts.pace(run) == {"a": 1, "b": 1}
    found = cells(section(("timed", run)))
    assert found[0] == ["client", "turns", "measured s", "set the pace"]
    assert ["late", "2", "9", ""] in found
    assert plan_facts.summary(run) == {}


def test_changes_of_plans_and_the_error_of_forecasts_are_counted() -> None:
    run = planned(clients=2, rounds=3, off=1.5)  # steps grow with every second round
    assert plan_facts.summary(run) == {"plans_changed": 2, "forecast_error": {"time": pytest.approx(0.5, abs=0.04)}}
    for line in run[1:]:
        for n, plan in enumerate(line["plans"].values()):
            plan["extra"]["predicted_s"] = float(line["round"] + n)  # no other plan for that; and never 0 divided by
    assert plan_facts.summary(run)["plans_changed"] == 2


def test_ranks_are_drawn_by_round_and_by_module() -> None:
    by_round, by_module, *against = drawn(section(("planned", planned(clients=4, rounds=3, modules=6))))
    assert by_round.count("<rect") == 4 * 3 + 2  # and the key: ranks 8 and 16
    assert by_module.count("<rect") == 4 * 6 + 4
    frozen = 3  # client 2 learns the other half of the modules
    assert by_module.count('fill="none"') == frozen
    assert all(name in by_module for name in ("layers.0.k_proj", "layers.2.q_proj", "site-3"))
    assert len(against) == plots.available()


def test_modules_stand_in_the_order_of_the_layers() -> None:
    run = planned(clients=2, rounds=1, modules=24)
    by_module = drawn(section(("planned", run)))[1]
    assert by_module.index("layers.2.q_proj") < by_module.index("layers.10.q_proj")


@pytest.mark.parametrize("side", [3, 90])
def test_a_heat_map_is_whole_whatever_the_names(side: int) -> None:
    names = [f"{EVIL}{n}" for n in range(side)]
    made = {(a, b): Cell(float((n + m) % 3)) for n, a in enumerate(names) for m, b in enumerate(names)}
    svg = heat_map.heat_map(names, names, made, EVIL)
    root = ElementTree.fromstring(svg)
    assert len(root.findall("{*}rect")) == side * side + 3
    assert all("script" not in element.tag for element in root.iter())
    assert heat_map.heat_map(names, names, made, EVIL) == svg


def test_larger_numbers_are_darker() -> None:
    look = heat_map.colours([32, 0, 4, 8])
    light = [sum(bytes.fromhex(look[n][1:])) for n in (4, 8, 32)]
    assert light == sorted(light, reverse=True)
    assert len({*look.values()}) == 4


def test_what_others_wrote_is_text() -> None:
    run = planned(clients=2, rounds=1)
    run[1]["plans"][EVIL] = {"rank": 2, "ranks": {EVIL: 4}, "extra": {"predicted_s": "soon", "ratio": EVIL}}
    page = html_report.page(compared("fedit"), section((EVIL, run)))
    assert "<script" not in page
    assert not any("<script" in svg for svg in drawn(page))


def test_the_page_of_a_folder_has_its_plans(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in planned()))
    for seed in (0, 1):
        of_race = tmp_path / "race" / "flora" / f"seed-{seed}"
        of_race.mkdir(parents=True)
        (of_race / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    (tmp_path / "race" / "race.json").write_text("{}")
    found = plans.of_folders([tmp_path / "run", tmp_path / "race"])
    assert [(label, len(of)) for label, of in found] == [("run", 6), ("flora", 5)]
