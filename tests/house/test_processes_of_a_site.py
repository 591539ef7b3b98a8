"""A site of two processes (torch.distributed over gloo) ends where a site of one does, and stops as one."""

import json
import os
import sys
from pathlib import Path

import pytest
import tomli_w
from processes import Deployment, Service, free_port
from safetensors.torch import load_file

from fedft import run_file
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow  # processes that import for seconds


def launched(d: Deployment, name: str) -> Service:
    """A site's client in two processes, as torchrun starts them; accelerate does the same where there are GPUs."""
    where = ("--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port()))
    service = Service(d.folder / f"{name}.log", "client", str(d.site(name) / "site.toml"))
    service.program = (sys.executable, "-m", "torch.distributed.run", *where, "-m", "fedft")
    d.services.append(service)
    return service.start()


def changed(folder: Path) -> dict:
    return load_file(folder / "model" / "adapter_model.safetensors")


def test_two_processes_take_the_steps_of_one(tiny_base: Path, tmp_path: Path) -> None:
    rows = [{"client": f"c{n % 2}", "prompt": f"{n} is", "response": " so" * (1 + n % 5)} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "model": {"id": str(tiny_base)},
        "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 24},
        "strategy": {"name": "flora"},  # whose rounds begin on base weights that have moved
        "local": {"steps": 3, "batch_size": 5, "learning_rate": 5e-3, "optimizer": "sgd"},
        "clients": {"rank": 2},
        "server": {"rounds": 3, "loggers": []},
    }
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables))
    with Deployment(tmp_path, tmp_path / "run.toml") as d:
        one, two = d.rehearse()
        server = d.server()
        d.client(one)
        both = launched(d, two)
        simulated = runs.simulate(run_file.load(d.run), out=tmp_path / "simulated")
        assert server.ended(180) == 0, server.said() + both.said()
        assert "process 2 of 2" in both.said()
        for a, b in zip(*(_losses(f) for f in (d.out, simulated.folder)), strict=True):
            assert a == pytest.approx(b, rel=1e-5)
        ours, theirs = changed(d.out), changed(simulated.folder)
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            assert float((x - theirs[name]).abs().max()) <= 1e-4 * float(theirs[name].abs().max()) + 1e-7
        assert json.loads((d.out / "summary.json").read_text())["refused"] == simulated.summary["refused"]
        both.stop()
        assert not any(os.path.exists(f"/proc/{pid}") for pid in both.children())


def _losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
