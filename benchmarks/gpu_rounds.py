"""Parts of `gpu.py` that are runs: a whole simulated round at 1B, and the quickstart on two workers of one device."""

from __future__ import annotations

import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fedft.benchmarks.gpu_machine import Facts, LeftOut, Machine
from fedft.benchmarks.gpu_models import RANK, adapted, llama
from fedft.config import Server
from fedft.data.examples import Example
from fedft.models import load

CLIENTS, STEPS = 8, 2


def whole_round(machine: Machine, seconds: float) -> Facts:
    """A round of eight clients with FedIT: turns, messages, admission, aggregation, state on the disk."""
    from fedft import strategies
    from fedft.client.received_state import CohortCache, Memory
    from fedft.client.train import Client
    from fedft.models.resident import Resident
    from fedft.run_file import from_dict
    from fedft.server import open_run
    from fedft.simulations import workplace

    length = 16 if machine.tiny else 512
    net = llama(machine, "1B")
    base, handle = load.Base(net, None, "causal-lm", "made up", "0" * 64), adapted(net)
    ids = [[(i * 7919 + k) % 127 + 1 for i in range(length)] for k in range(CLIENTS)]
    rows = {f"client-{k}": [Example(ids[k], ids[k], 0)] * 4 * STEPS for k in range(CLIENTS)}
    config = from_dict(
        {
            "model": {"id": "made up", "targets": "all-linear", "device": str(machine.device)},
            "data": {"max_length": length},
            "strategy": {"name": "fedit"},
            "local": {"steps": STEPS, "batch_size": 4, "learning_rate": 1e-4},
            "clients": {"rank": RANK},
            "server": {"rounds": 1},
            "eval": {"exactness": False},
        }
    )
    recipe, cache = strategies.of(config), CohortCache()
    clients = {n: Client(n, r, [], base, handle, recipe, config, Memory(cache)) for n, r in rows.items()}
    cache.members += [c.memory for c in clients.values()]
    with TemporaryDirectory() as folder:
        run = open_run.fresh(
            config, recipe, Resident(base, handle.layout, handle), Path(folder), workplace.whose(clients)
        )
        began = time.perf_counter()
        run.loop(workplace.local_post(clients)).run(clients)
        machine.wait()
        took = time.perf_counter() - began
    return {
        "ok": True,
        "round s": took,
        "s per client": took / CLIENTS,
        "tokens/s": CLIENTS * STEPS * 4 * length / took,
    }


def fleet(machine: Machine, seconds: float) -> Facts:
    """The quickstart with two workers on one device: the state of one process, bit for bit."""
    if "workers" not in {f.name for f in fields(Server)}:
        raise LeftOut("needs [server] workers")
    from fedft.run_file import load as read
    from fedft.simulations.run import QUICKSTART, simulate

    device = f"{machine.device}:0" if machine.device.type == "cuda" else "cpu"
    small = ["data.clients=2", "local.steps=1", "eval.max_rows=2"] if machine.tiny else []
    config = read(QUICKSTART, small)
    config = replace(config, model=replace(config.model, device=device), server=replace(config.server, rounds=1))
    found: list[str] = []
    took: list[float] = []
    with TemporaryDirectory() as folder:
        for workers in (None, [device, device]):
            server: Any = {**asdict(config.server), "workers": workers}
            began = time.perf_counter()
            done = simulate(replace(config, server=Server(**server)), out=Path(folder) / str(len(found)))
            took.append(time.perf_counter() - began)
            found.append(done.summary["state_digest"])
    return {
        "ok": found[0] == found[1],
        "one process s": took[0],
        "two workers s": took[1],
    }
