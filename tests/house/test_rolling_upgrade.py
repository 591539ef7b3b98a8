"""A rolling upgrade as operators do it: processes of two versions of the protocol in one run, updated one by one."""

import json
import sys
from pathlib import Path

import pytest
from processes import FEDFT, Deployment

from fedft import run_file
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds; without them: tests/server/test_versions.py
SETS = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]


def speaking(numbers: str) -> tuple[str, ...]:
    """The command of a fedft that speaks these versions."""
    script = Path(__file__).resolve().parents[1] / "support" / "next_version.py"
    return (sys.executable, str(script), numbers)


def test_server_and_sites_are_updated_one_by_one_in_the_middle_of_a_run(tmp_path: Path, tiny_base: Path) -> None:
    sets = [f"model.id='{tiny_base}'", "strategy.name=scaffold", "clients.rank=4", "server.rounds=24", *SETS]
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        names = d.rehearse()
        simulated = runs.simulate(run_file.load(d.run, sets), out=tmp_path / "simulated")
        server, sites = d.server(), {name: d.client(name) for name in names}
        assert server.program == FEDFT
        for n, service in enumerate([server, *sites.values()]):
            server.wait_for(rf"round ({n + 1}|[{n + 2}-9]|[12]\d): asking", 120)  # rounds are short: one may be missed
            service.kill()
            service.program = speaking("2,3")
            service.start()
        assert server.ended(180) == 0
        summary = json.loads((d.out / "summary.json").read_text())
        assert summary["state_digest"] == simulated.summary["state_digest"]
        lines = [json.loads(line) for line in (d.out / "metrics.jsonl").read_text().splitlines()]
        assert all(line["participants"] == names for line in lines[1:])
        assert not summary.get("memory_lost")


def test_two_steps_apart_both_sides_name_both_versions(tmp_path: Path, tiny_base: Path) -> None:
    sets = [f"model.id='{tiny_base}'", "server.rounds=1", *SETS]
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        name = d.rehearse()[0]
        server, site = d.server(), d.client(name)
        site.kill()
        site.program = speaking("3,4")
        site.start()
        site.wait_for(r"cannot be spoken to: it speaks protocol 2, this side protocol 3 to 4: update the server", 120)
        server.wait_for(r"speaks protocol 3 to 4, this server protocol 2: update this server", 60)
