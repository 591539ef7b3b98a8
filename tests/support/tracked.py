"""Reads back what wandb, MLflow and Trackio have of a run's folder, and shuts them off from the network."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

Points = list[tuple[str, int]]
"""(name of a number, version)."""
BLOCK = 1 << 15


def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Nobody but this machine can be reached from here on; returns the list of those that somebody tried to reach."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"):
            return connect(self, address)
        tried.append(address)
        raise OSError(f"nobody is to be contacted: {address}")

    def nobody(host: Any, *args: Any, **how: Any) -> Any:
        tried.append(host)
        raise socket.gaierror(f"nobody is to be looked up: {host}")

    found = socket.getaddrinfo
    monkeypatch.setattr(socket.socket, "connect", only_here)
    here = ("127.0.0.1", "localhost", "::1", None)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **k: (found if host in here else nobody)(host, *a, **k))
    return tried


def packets(folder: Path, names: list[str]) -> list[Any] | str:
    """What a short run that is told to these loggers sends, from whatever process of theirs, in a network of its own;
    or why this system makes none."""
    here = Path(__file__).parent
    lonely = ["unshare", "--map-root-user", "--net", sys.executable, str(here / "lonely_network.py")]
    if not shutil.which("unshare") or not shutil.which("ip"):
        return "this machine has no unshare, or no ip"
    if (tried := subprocess.run([*lonely, os.devnull, "true"], capture_output=True, text=True, check=False)).returncode:
        return f"no network of our own: {tried.stderr.strip()[-200:]}"
    (folder / "run").mkdir()
    command = [sys.executable, str(here / "tracked_run.py"), str(folder / "run"), *names]
    subprocess.run([*lonely, str(folder / "seen.json"), *command], check=True, timeout=300, capture_output=True)
    return list(json.loads((folder / "seen.json").read_text()))


def mlflow_points(folder: Path) -> Points:
    (run,) = mlflow_runs(folder)
    client = _client(folder)
    return [(n, m.step) for n in run.data.metrics for m in client.get_metric_history(run.info.run_id, n)]


def mlflow_runs(folder: Path) -> list[Any]:
    client = _client(folder)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def mlflow_template(folder: Path) -> Path:
    """An empty database of MLflow: making its tables takes ten times as long as all else."""
    _client(folder).search_experiments()
    return folder / "mlflow.db"


def _client(folder: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")


def trackio_points(folder: Path) -> Points:
    from trackio.sqlite_storage import SQLiteStorage

    logs = SQLiteStorage.get_logs("fedft", trackio_name(folder))
    return [(n, line["step"]) for line in logs for n in line if n not in ("step", "timestamp")]


def trackio_name(folder: Path) -> str:
    """What the run of this folder is called."""
    return f"{folder.name}-{(folder / 'logger-id').read_text().strip()}"


def wandb_points(folder: Path) -> Points:
    histories = [record.history for record in wandb_records(folder) if record.HasField("history")]
    lines = [{"/".join(item.nested_key) or item.key: item.value_json for item in h.item} for h in histories]
    return [(name, int(line["_step"])) for line in lines for name in line]


def wandb_records(folder: Path) -> list[Any]:
    """Of the one offline run in a folder, once its end is written, which happens a moment after `finish`."""
    until = time.monotonic() + 10
    while not (found := _records(folder)) or not found[-1].HasField("exit"):
        if time.monotonic() > until:
            raise TimeoutError(f"{folder}: {len(found)} records, and no end")
        time.sleep(0.02)
    return found


def _records(folder: Path) -> list[Any]:
    """What is written so far: blocks of 32 KiB, with 7 bytes before each piece of a record (the log of LevelDB)."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, at, piece, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            found.append(record)
            piece = b""
    return found
