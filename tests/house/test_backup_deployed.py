"""A run of real processes, backed up while it goes on, comes back from the backup and ends with the same bytes."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from processes import Deployment
from typer.testing import CliRunner

from fedft import run_file
from fedft.cli.main import app
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds; without them: tests/backups/test_snapshot.py


def test_a_run_that_was_lost_goes_on_from_its_backup(tiny_base: Path, tmp_path: Path) -> None:
    """The sites have answered later rounds meanwhile, and one is put back as it was, too."""
    small = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=scaffold", "clients.rank=4", "server.rounds=6", *small]

    def command(*args: object) -> str:
        done = CliRunner().invoke(app, [str(a) for a in args])
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        d.rehearse()
        server, _, email = d.server(), d.client("asyncio"), d.client("email")
        simulated = runs.simulate(run_file.load(d.run, sets), out=tmp_path / "simulated")
        server.wait_for("state 2,", 180)
        taken = json.loads(command("backup", d.out, "--to", tmp_path / "run.tar", "--json"))
        state = d.site("email") / "fedft-site"
        command("backup", state, "--to", tmp_path / "email.tar")
        server.wait_for("state 3,", 60)
        server.send(signal.SIGKILL)
        server.ended()
        email.kill()
        for folder, file in ((d.out, "run.tar"), (state, "email.tar")):
            shutil.rmtree(folder)
            command("restore", tmp_path / file, "--to", folder)
        email.start()
        server.start()
        assert server.ended(180) == 0
        summary = json.loads((d.out / "summary.json").read_text())
        assert summary["state_digest"] == simulated.summary["state_digest"]
        assert summary["memory_lost"] == {}
        newest = max(int(name[10:18]) for name in taken["files"] if name.startswith("state/gen-"))
        assert newest >= 2, "it was taken in the middle"
