"""Keys that are replaced while a run of real processes goes on: no round is lost, and no byte changes."""

import json
import signal
from pathlib import Path

import pytest
from processes import Deployment

from fedft import run_file
from fedft.security import private_keys, roster, rotation
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds; without them: tests/client/test_server_trust.py


def test_a_server_s_and_a_site_s_keys_are_replaced_in_the_middle_of_a_run(tiny_base: Path, tmp_path: Path) -> None:
    small = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=scaffold", "clients.rank=4", "server.rounds=5", *small]
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        d.rehearse()
        server, asyncio, email = d.server(), d.client("asyncio"), d.client("email")
        simulated = runs.simulate(run_file.load(d.run, sets), out=tmp_path / "simulated")
        server.wait_for("state 1,", 120)
        server.send(signal.SIGKILL)
        server.ended()
        folder = d.site("email") / "keys"
        old = private_keys.load_signing(folder / "signing.key").public_key()
        roster.enrol(d.keys / "roster.toml", rotation.rotate_site(folder))
        rotation.rotate_server(d.keys)
        server.start()
        for client in (asyncio, email):
            client.wait_for("the server has replaced its keys", 120)
        rotation.finish_site(folder)  # its process goes on with the old keys until it is started anew
        email.kill()
        email.start()
        assert server.ended(120) == 0
        assert private_keys.load_signing(folder / "signing.key").public_key() != old
        summary = json.loads((d.out / "summary.json").read_text())
        assert summary["state_digest"] == simulated.summary["state_digest"]
        assert (summary["refused"], summary["never_took_part"]) == (0, {})
        rotation.finish_server(d.keys, early=True)
        again = d.server("--set", "server.rounds=1", out=tmp_path / "again")
        assert again.ended(120) == 0, (
            "the new authority is trusted, by the processes that heard of it and after a start"
        )
        assert json.loads((tmp_path / "again" / "summary.json").read_text())["never_took_part"] == {}
