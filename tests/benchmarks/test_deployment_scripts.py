"""The scripts of a checkout that time and disturb whole deployments: each runs and gives the figures it promises."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import warm_processes

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "benchmarks" / "deployment"
PHASES = {"down", "site", "up", "aggregate", "commit", "rest", "fsync"}


def _run(script: str, *args: str) -> str:
    done = warm_processes.run([str(SCRIPTS / script), *args], cwd=ROOT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _figures(value: Any) -> list[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict):
        return [x for v in value.values() for x in _figures(v)]
    if isinstance(value, list):
        return [x for v in value for x in _figures(v)]
    return [value] if isinstance(value, int | float) else []


def test_every_script_is_run_by_a_test_here() -> None:
    """By its name in a call of `_run`; other files there are parts of the scripts."""
    run = set(re.findall(r'_run\(\s*"(\w+\.py)"', Path(__file__).read_text(encoding="utf-8")))
    assert run == {p.name for p in SCRIPTS.glob("*.py") if "typer.run(main)" in p.read_text(encoding="utf-8")}


@pytest.mark.slow
@pytest.mark.parametrize("together", [(), ("--together",)], ids=["processes", "threads"])
def test_rounds_says_where_the_time_of_a_round_goes(tmp_path: Path, together: tuple[str, ...]) -> None:
    out, sites = tmp_path / "rounds.json", 2 if together else 1
    said = _run("rounds.py", "--mib", "1", "--sites", str(sites), "--rounds", "4", "--json", str(out), *together)
    (row,) = json.loads(out.read_text())
    assert (row["mib"], row["sites"], row["refused"]) == (1, sites, 0)
    assert set(row["phases_s"]) == PHASES
    assert sum(row["phases_s"].values()) - row["phases_s"]["fsync"] == pytest.approx(row["round_s"]["median"], abs=0.01)
    assert 0 < row["round_s"]["min"] <= row["round_s"]["median"] <= row["round_s"]["max"]
    assert row["bytes"]["up"] >= sites * 2**20 <= row["bytes"]["down"]  # float32, there and back
    # looked at while rounds go on: at each end a way may be on its way
    assert row["loopback"] > 0.4 * (row["bytes"]["up"] + row["bytes"]["down"])
    assert row["same_pids"] == len(row["site_pids"]) == 1
    assert {"server"} < row["cpu_s"].keys() == row["peak_mib"].keys()
    assert all(math.isfinite(x) for x in _figures(row))
    for name in ("round", "bytes", "CPU s"):
        assert re.search(rf"^  {name} ", said, re.MULTILINE), said


@pytest.mark.slow
def test_plain_flower_times_a_round_of_flower_s_own_programs(tmp_path: Path) -> None:
    out = tmp_path / "plain.json"
    said = _run("plain_flower.py", "--mib", "1", "--sites", "1", "--rounds", "1", "--no-heavy", "--json", str(out))
    (row,) = json.loads(out.read_text())
    assert (row["mib"], row["sites"], row["heavy"]) == (1, 1, False)
    assert len(row["round_s"]) == 1
    assert row["round_s"][0] > 0
    assert re.match(r"1 MiB, 1 sites, bare: \d+\.\d\d s a round", said)


@pytest.mark.slow
def test_chaos_disturbs_a_deployment_which_ends_as_its_simulation(tiny_base: Path, tmp_path: Path) -> None:
    sets = [f"model.id='{tiny_base}'", "server.rounds=4", "data.clients=2", "local.steps=2", "eval.max_rows=4"]
    words = [word for s in (*sets, "clients.rank=4") for word in ("--set", s)]
    run_file = str(ROOT / "simulations" / "quickstart.toml")
    said = _run("chaos.py", run_file, "--kills", "2", "--seed", "4", "--out", str(tmp_path / "out"), *words)
    (done,) = re.findall(r"^all states equal: (\d) of 2 kills, 4 rounds, .* (\d) things wrong$", said, re.MULTILINE)
    assert done[1] == "0"
    assert "  server: " in said or "  client " in said or "  network " in said
    assert len(re.findall(r"^ *[\d.]+ s  state +\d+  .* back after ", said, re.MULTILINE)) == int(done[0]) > 0
    (digest,) = re.findall(r"^state digest ([0-9a-f]{64})$", said, re.MULTILINE)
    lines = (tmp_path / "out" / "simulated" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["state_digest"] == digest


SMALL = ("data.clients=2", "local.steps=1", "eval.max_rows=4", "clients.rank=2")


def _sets(*sets: str) -> list[str]:
    return [word for s in (*SMALL, *sets) for word in ("--set", s)]


@pytest.mark.slow
def test_chaos_is_dealt_over_families_of_strategies(tiny_base: Path, tmp_path: Path) -> None:
    table, run_file = tmp_path / "chaos.md", str(ROOT / "simulations" / "quickstart.toml")
    options = ("--kills", "1", "--rounds", "12", "--only", "fedsa_lora", "--table", str(table))
    _run("chaos_families.py", run_file, *options, *_sets(f"model.id='{tiny_base}'"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines()[2:]]
    assert {row[0].split(":")[0] for row in rows} == {"fedsa_lora"}
    assert [sum(int(row[n]) for row in rows) for n in (1, 2, 3)] == [1, 1, 1]
    assert {row[5] for row in rows} == {"yes"}


@pytest.mark.slow
def test_a_soak_says_how_memory_grows(tiny_base: Path, tmp_path: Path) -> None:
    curve, run_file = tmp_path / "soak.csv", str(ROOT / "simulations" / "quickstart.toml")
    options = ("--minutes", "0.25", "--every", "5", "--csv", str(curve), "--out", str(tmp_path / "out"))
    said = _run("soak.py", run_file, *options, *_sets(f"model.id='{tiny_base}'", "strategy.name=fedit"))
    assert re.search(
        r"^all states equal: \d+ rounds in 0\.25 minutes, \d disturbances, 0 things wrong", said, re.MULTILINE
    )
    assert re.search(r"^server: [\d.]+ to [\d.]+ MiB .* MiB an hour", said, re.MULTILINE)
    lines = curve.read_text().splitlines()
    assert lines[0] == "seconds,process,pid,mib,files,state"
    assert len(lines) > 20


@pytest.mark.slow
def test_rounds_close_while_strangers_come(tmp_path: Path) -> None:
    out = tmp_path / "strangers.json"
    _run("strangers.py", "--strangers", "50", "--seconds", "3", "--sites", "2", "--quiet", "5", "--json", str(out))
    row = json.loads(out.read_text())
    assert row["equal"]
    assert row["came"] >= 50
    assert row["rounds"]["with"] > 0
    assert row["rounds"]["without"] >= 8
    assert row["ratio"] > 0
