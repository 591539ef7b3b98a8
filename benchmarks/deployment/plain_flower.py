"""The plain Flower way of the same round: flower-superlink, flower-supernode and FedAvg, for comparison with rounds.py.

    python benchmarks/deployment/plain_flower.py --mib 1 --mib 50 --sites 2 --rounds 3

Each client echoes the array it was sent. `heavy` imports torch, transformers and peft first, as a client that
fine-tunes must: Flower starts a process for each message. TLS and node authentication as in a deployment. Reported are
seconds per round after the first one, from the moment a round is configured to the next one's.
"""

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

PROJECT = """[project]
name = "plain"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedft"

[tool.flwr.app.components]
serverapp = "plain_server:app"
clientapp = "plain_client:app"

[tool.flwr.app.config]
rounds = 3
mib = 1
sites = 2
out = ""
"""
SERVER = """import time
import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

@app.main()
def main(grid, context):
    c = context.run_config
    class Noted(FedAvg):
        def configure_train(self, *args, **kwargs):
            with open(c["out"], "a") as f:
                f.write(f"{time.monotonic()}\\n")
            return super().configure_train(*args, **kwargs)
    value = np.random.default_rng(0).normal(0, 1e-3, c["mib"] * 2**18).astype("f4")
    strategy = Noted(fraction_evaluate=0.0, min_train_nodes=c["sites"], min_available_nodes=c["sites"])
    strategy.start(grid, ArrayRecord([value]), num_rounds=c["rounds"] + 2)
"""
CLIENT = """from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    found = ArrayRecord(message.content["arrays"].to_numpy_ndarrays())
    return Message(RecordDict({"arrays": found, "metrics": MetricRecord({"num-examples": 10})}), reply_to=message)
"""
HEAVY = "import torch, transformers, peft\n"
PATIENCE_S = 900.0


def measure(mib: int, sites: int, rounds: int, heavy: bool) -> list[float]:
    """Seconds of each round after the first one."""
    folder = Path(mkdtemp(prefix="fedft-plain-"))
    port = _free_port()
    env = os.environ | {
        **{"FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"},
        **{"FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1", "NO_PROXY": "127.0.0.1,localhost"},
        **{"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    try:
        place = rehearse(folder, sites, port, heavy)
        with _ending(env, folder) as start:
            superlink = ["flower-superlink", "--host", "127.0.0.1", "--port", str(port), "--enable-supernode-auth"]
            superlink += ["--ssl-ca-certfile", f"{place}/ca.pem", "--ssl-certfile", f"{place}/server.pem"]
            superlink += ["--ssl-keyfile", f"{place}/server.key", "--disable-runtime-dependency-installation"]
            start(*superlink)
            _listening(port)
            for i in range(sites):
                _run(env, folder, "flwr", "supernode", "register", str(folder / f"node{i}.pub"), "bench")
                node = [
                    "flower-supernode",
                    "--superlink",
                    f"127.0.0.1:{port}",
                    "--root-certificates",
                    f"{place}/ca.pem",
                ]
                node += ["--auth-supernode-private-key", str(folder / f"node{i}"), "--port", str(_free_port())]
                start(*node)
            out = folder / "rounds.txt"
            said = f"rounds={rounds} mib={mib} sites={sites} out='{out}'"
            _run(env, folder, "flwr", "run", str(folder / "app"), "bench", "--run-config", said)
            until = time.monotonic() + PATIENCE_S
            while len(begun := _numbers(out)) < rounds + 2:
                if time.monotonic() > until:
                    raise SystemExit(f"{len(begun)} rounds in {PATIENCE_S} s\n{(folder / 'log').read_text()[-4000:]}")
                time.sleep(0.2)
        return [b - a for a, b in pairwise(begun[1:])]
    finally:
        rmtree(folder, ignore_errors=True)


def rehearse(folder: Path, sites: int, port: int, heavy: bool) -> Path:
    """Certificates, node keys, connection and app; returns the folder of the certificates."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    from fedft.security import new_keys

    new_keys.make_server(folder / "keys", ["localhost", "127.0.0.1"])
    for i in range(sites):
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        (folder / f"node{i}").write_bytes(private)
        (folder / f"node{i}.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    (folder / "home").mkdir()
    connection = f'address = "127.0.0.1:{port}"\nroot-certificates = "{folder}/keys/ca.pem"\n'
    (folder / "home" / "config.toml").write_text(f'[superlink]\ndefault = "bench"\n[superlink.bench]\n{connection}')
    app = folder / "app"
    app.mkdir()
    (app / "pyproject.toml").write_text(PROJECT)
    (app / "plain_server.py").write_text(SERVER)
    (app / "plain_client.py").write_text(HEAVY * heavy + CLIENT)
    return folder / "keys"


@contextmanager
def _ending(env: dict[str, str], folder: Path) -> Iterator[Any]:
    """Starts programs, which end with the block, and whatever they have started too."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with open(folder / "log", "ab") as log:
            started.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))

    try:
        yield start
    finally:
        for process in started[::-1]:
            process.terminate()
        for process in started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
        for pid in _of_home(env["FLWR_HOME"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in started:
            process.wait()


def _of_home(home: str) -> list[int]:
    """Processes with this FLWR_HOME: Flower's own children leave their parent's group and session."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"FLWR_HOME={home}\0".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
    return found


def _run(env: dict[str, str], folder: Path, *command: str) -> None:
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout}{done.stderr}\n{(folder / 'log').read_text()[-3000:]}")


def _listening(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.2)
    raise SystemExit("flower-superlink does not listen")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as s:
        return int(s.getsockname()[1])


def _numbers(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


def main(
    mib: Annotated[list[int], typer.Option(help="Size of the array; may be given again.")] = [1, 50],  # noqa: B006
    sites: Annotated[int, typer.Option(help="Number of clients.")] = 2,
    rounds: Annotated[int, typer.Option(help="Rounds measured, after a first one.")] = 3,
    heavy: Annotated[bool | None, typer.Option(help="Only with, or only without, the imports of a fine-tuner.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Seconds per round of Flower's own programs."""
    found = []
    for size in mib:
        for imports in (False, True) if heavy is None else (heavy,):
            load = os.getloadavg()[0]
            seconds = measure(size, sites, rounds, imports)
            found.append({"mib": size, "sites": sites, "heavy": imports, "round_s": seconds, "load": load})
            what = "with torch, transformers, peft" if imports else "bare"
            middle = statistics.median(seconds)
            typer.echo(
                f"{size} MiB, {sites} sites, {what}: {middle:.2f} s a round (from {min(seconds):.2f} to "
                f"{max(seconds):.2f}), load {load:.1f} to {os.getloadavg()[0]:.1f}"
            )
            if json_:
                json_.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
