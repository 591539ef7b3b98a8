"""From devices to plans: eighty of them with hidden speeds, and one that lies about its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.config import RunConfig
from fedft.server.checkpoint import Store
from fedft.simulations import devices
from fedft.simulations import run as runs

CLASSES = "{share=30,flops=1e9,up=1e7},{share=40,flops=4e8,up=1e7},{share=10,flops=1.7e8,up=1e7}"
SMALL = (
    "strategy.name=fedit", "strategy.padding=zero", "clients.rank=8", "local.steps=1", "local.batch_size=1",
    "data.max_length=24", "data.partition=iid", "eval.max_rows=1", "eval.clients=2", "eval.every=10",
    "server.loggers=[]", "eval.exactness=false",
)  # fmt: skip


def simulated(base: Path, out: Path, *more: str, observe: Any = ()) -> runs.Run:
    sets = [f"model.id='{base}'", *SMALL, *more]
    return runs.simulate(run_file.load(runs.QUICKSTART, sets), out=out, observe=observe)


def test_eighty_devices_of_hidden_speeds_get_ranks_by_what_was_seen_of_them(
    tiny_base: Path, tmp_path: Path, allow: Any
) -> None:
    allow("by_slowness:by_slowness")
    table = f"clients.devices={{classes=[{CLASSES}],hidden=true,jitter=0.02}}"
    sets = ["data.clients=80", "clients.per_round=16", "server.rounds=5", "server.quorum=1.0", table]
    planned = simulated(tiny_base, tmp_path / "a", *sets, "clients.plan='by_slowness:by_slowness'")
    again = simulated(tiny_base, tmp_path / "b", *sets, "clients.plan='by_slowness:by_slowness'")
    assert [(x["seconds"].get("virtual"), x["state_digest"], x.get("plans")) for x in again.lines] == [
        (x["seconds"].get("virtual"), x["state_digest"], x.get("plans")) for x in planned.lines
    ]
    config = run_file.load(planned.folder / "config.toml")
    speeds = {c: d.flops for c, d in devices.dealt(config, _clients(planned)).items()}
    first, later = planned.lines[1]["plans"], [line["plans"] for line in planned.lines[2:]]
    assert {plan["rank"] for plan in first.values()} == {8}
    low = [speeds[c] for plans in later for c, plan in plans.items() if plan["rank"] == 2]
    assert low
    assert max(low) < 1e9  # the fast ones are never taken for slow
    fixed = simulated(tiny_base, tmp_path / "c", *sets)
    assert planned.summary["seconds_virtual"] < fixed.summary["seconds_virtual"]


def _clients(run: runs.Run) -> list[str]:
    found = Store(run.folder / "state").latest(recover=False)
    assert found is not None
    return list(found[1]["profiles"])


def test_a_client_that_lies_about_its_speed_harms_itself_alone(
    tiny_base: Path, tmp_path: Path, allow: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It claims 10^15 operations a second, gets the largest plan and misses the deadline; nobody else's plan or update
    is another one for it."""
    allow("by_slowness:by_claim")
    table = f"clients.devices={{classes=[{CLASSES}]}}"
    sets = ["data.clients=8", "server.rounds=1", table, "clients.plan='by_slowness:by_claim'"]
    honest: dict[str, Any] = {}
    true = simulated(tiny_base, tmp_path / "honest", *sets, "server.quorum=1.0", observe=_admitted(honest))
    slowest = max(true.lines[1]["reply_s"], key=true.lines[1]["reply_s"].__getitem__)
    others = sorted(t for c, t in true.lines[1]["reply_s"].items() if c != slowest)
    plain = devices.profiles

    def lying(config: RunConfig, clients: Any) -> Mapping[str, Mapping[str, float]]:
        return {**plain(config, clients), slowest: {"flops": 1e15}}

    monkeypatch.setattr(devices, "profiles", lying)
    told: dict[str, Any] = {}
    sets += ["server.quorum=0.5", f"server.deadline_s={others[-1] * 1.001}", "server.grace_s=1e6"]
    liar = simulated(tiny_base, tmp_path / "liar", *sets, observe=_admitted(told))
    assert true.lines[1]["plans"][slowest]["rank"] == 2
    assert liar.lines[1]["plans"][slowest]["rank"] == 8
    assert [r["client"] for r in liar.lines[1]["refused"]] == [slowest]
    assert {c: p for c, p in liar.lines[1]["plans"].items() if c != slowest} == {
        c: p for c, p in true.lines[1]["plans"].items() if c != slowest
    }
    assert told == {c: metrics for c, metrics in honest.items() if c != slowest}


def _admitted(found: dict[str, Any]) -> Any:
    """An observer that notes what each client said of its update."""

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "admitted":
            found[info["client"]] = dict(info["metrics"])

    return observe
