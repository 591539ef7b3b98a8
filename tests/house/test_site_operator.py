"""A site's operator is asked, in real processes: the log's own command is typed, after the site was killed once."""

import json
import re
import shlex
from pathlib import Path

import pytest
import warm_processes
from processes import Deployment

from fedft import run_file
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds


def test_a_run_waits_for_the_operator_through_a_kill_and_ends_with_the_simulation_s_bytes(
    tiny_base: Path, tmp_path: Path
) -> None:
    small = ["local.steps=2", "local.batch_size=4", "data.max_length=32", "data.clients=2", "eval.max_rows=4"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=fedit", "clients.rank=2", "server.rounds=2", *small]
    with Deployment(tmp_path, runs.QUICKSTART, [*sets, "server.quorum=1.0"]) as d:
        one, two = d.rehearse()
        file = d.site(two) / "site.toml"
        text = file.read_text()
        file.write_text(
            text.replace("[policy]\n", '[policy]\napprove = "ask"\n').replace("[site]\n", "[site]\nmax_mbit_s = 50\n")
        )
        server = d.server()
        d.client(one)
        client = d.client(two)
        client.wait_for("waits for approval", 120)
        server.wait_for(f"{two}: waiting for approval", 60)
        client.kill()
        client.start()
        line = client.wait_for("waits for approval", 120)
        found = re.search(r"to take part: (fedft .*?);", line)
        assert found is not None
        assert not (d.site(two) / "fedft-site" / "state.fedft").exists()
        simulated = runs.simulate(run_file.load(d.run, [*sets, "server.quorum=1.0"]), out=tmp_path / "simulated")
        command = shlex.split(found[1])[1:]
        done = warm_processes.run(["-m", "fedft", *command], check=True)
        assert "approved" in done.stdout
        assert server.ended(180) == 0, server.said()
        summary = json.loads((d.out / "summary.json").read_text())
        assert summary["state_digest"] == simulated.summary["state_digest"]
        assert summary["refused"] == 0
        to = tmp_path / "exported"
        run = command[3]
        exported = ["site", "export", str(file), "--run", run, "--to", str(to)]
        warm_processes.run(["-m", "fedft", *exported], check=True)
        weights = "adapter_model.safetensors"
        assert (to / weights).read_bytes() == (d.out / "model" / weights).read_bytes()
