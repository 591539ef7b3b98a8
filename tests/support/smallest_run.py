"""The smallest run of every command that a deployment is made of, with the command lines of the container files.

    python smallest_run.py FOLDER MODEL

One site, one round: simulation, keys, `fedft doctor` on both sides, server and client as a pod or a container starts
them, their health checks; FOLDER/told.json says how each ended. A program of its own, so that it can run elsewhere.
"""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import containers
import manifests
from processes import FEDFT, Deployment, Service, free_port

SMALL = (
    "strategy.name=fedit", "server.rounds=1", "local.steps=2", "local.batch_size=2", "data.max_length=48",
    "data.clients=1", "eval.max_rows=2", "clients.rank=2",
)  # fmt: skip


def fedft(*words: str) -> int:
    """The exit code of a command; what it says is shown where it fails."""
    done = subprocess.run([*FEDFT, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(f"fedft {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}\n")
    return done.returncode


def place(d: Deployment, role: str, port: int, board: int) -> dict[str, str]:
    """Where the container's folders of a role lie, and which addresses stand for its own."""
    etc, var = d.folder / role / "etc", d.folder / role / "var"
    var.mkdir(parents=True)
    return {
        "/etc/fedft": str(etc),
        "/var/lib/fedft": str(var),
        "0.0.0.0:9443": f"127.0.0.1:{port}",
        "127.0.0.1:9443": f"127.0.0.1:{port}",
        "0.0.0.0:8080": f"127.0.0.1:{board}",
    }


def main(folder: Path, model: str) -> dict[str, Any]:
    """How every command ended, by what it was for."""
    from fedft.simulations import run as runs

    told: dict[str, Any] = {"port": free_port(), "board": free_port()}
    sets = [word for one in (f"model.id='{model}'", *SMALL) for word in ("--set", one)]
    told["simulate"] = fedft("simulate", str(runs.QUICKSTART), "--out", str(folder / "simulated"), *sets)
    run = folder / "simulated" / "config.toml"
    with Deployment(folder, run, port=told["port"]) as d:
        (name,) = d.rehearse()
        places = {role: place(d, role, told["port"], told["board"]) for role in containers.ROLES}
        (folder / "server" / "etc").mkdir()
        (folder / "keys").rename(folder / "server" / "etc" / "keys")
        (folder / "server" / "etc" / "run.toml").write_bytes(run.read_bytes())
        d.site(name).rename(folder / "client" / "etc")
        own = folder / "client" / "etc" / "site.toml"
        own.write_text(own.read_text().replace('state = "fedft-site"', f'state = "{folder}/client/var/state"'))

        server = _started(d, "server", manifests.container("server")["args"], places["server"])
        server.wait_for("waiting for", 120)
        told["server_is_well"] = _well("server", places)
        told["client_is_well_before_it_runs"] = _well("client", places)
        with urllib.request.urlopen(f"http://127.0.0.1:{told['board']}/healthz", timeout=20) as answer:
            told["healthz"] = answer.status
        told["doctor_client"] = fedft("doctor", str(own))
        told["doctor_server"] = fedft(
            "doctor", "--keys", f"{folder}/server/etc/keys", str(run), "--listen", f"127.0.0.1:{told['port']}",
            "--host", "127.0.0.1", "--out", f"{folder}/server/var", "--no-model",
        )  # fmt: skip
        client = _started(d, "client", containers.service("client")["command"], places["client"])
        client.wait_for("connected to", 120)
        told["client_is_well"] = _until_well(places)
        told["server"] = server.ended(180)
        told["server_is_well_after_its_end"] = _well("server", places)
        told["client"] = client.stop()
    for side, where in (("deployed", folder / "server" / "var" / "run"), ("simulated", folder / "simulated")):
        told[side] = json.loads((where / "summary.json").read_text())["state_digest"]
    return told


def _started(d: Deployment, role: str, words: list[str], places: dict[str, str]) -> Service:
    service = Service(d.folder / f"{role}.log", *containers.placed(words, places))
    d.services.append(service)
    return service.start()


def _well(role: str, places: dict[str, dict[str, str]]) -> int:
    """The exit code of a role's health check."""
    words = containers.service(role)["healthcheck"]["test"][2:]
    return fedft(*containers.placed(words, places[role]))


def _until_well(places: dict[str, dict[str, str]], seconds: float = 60) -> int:
    until = time.monotonic() + seconds
    while (code := _well("client", places)) and time.monotonic() < until:
        time.sleep(0.5)
    return code


if __name__ == "__main__":
    at = Path(sys.argv[1])
    (at / "told.json").write_text(json.dumps(main(at, sys.argv[2])))
