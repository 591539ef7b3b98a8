"""The same loop and clients on Flower's simulation engine: many processes, one machine or a Ray cluster.

Each worker process loads the base model once and keeps it. Ray hands a client's message to any worker, so a client may
find that this worker does not remember its state: it answers "behind" and is sent the whole of it. Results are those of
`local` mode, bit for bit; bytes down may be more. Needs the extra `ray`.
"""

import json
import logging
import time
import warnings
from collections.abc import Collection
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedft import run_file as configs
from fedft.carriers.flower import grid as transport
from fedft.carriers.flower.grid import Message
from fedft.client.train import MAX_PLAN_BYTES
from fedft.contract import State
from fedft.errors import ConfigError, FedftError
from fedft.server.job import job_on
from fedft.server.open_run import OpenRun

WAIT_S = 120.0  # for the engine to start its nodes


def check_installed() -> None:
    """Return None where Ray is installed. Raises ConfigError with the command that installs it."""
    if find_spec("ray") is None:
        raise ConfigError('[server] mode = "ray": ray is not installed here; pip install "fedft[ray]"')


def carry(run: OpenRun, clients: Collection[str]) -> State:
    """Carry the run to its end on Flower's engine; returns the final state. What clients keep lies in its folder."""
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.WARNING)
    ended: dict[str, Any] = {}
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            nodes = _nodes(grid, sorted(clients, key=str.encode))
            ended["state"] = run.loop(transport.GridPost(grid, nodes)).run(nodes)
        except FedftError as e:
            ended["error"] = e

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(
            server,
            _client_app(json.dumps(run.config.to_dict()), str(run.folder.resolve()), run.job.run),
            num_supernodes=len(clients),
            backend_config={"client_resources": {"num_cpus": run.config.local.threads, "num_gpus": 0.0}},
        )
    if "state" not in ended:
        raise ended.get("error") or ConfigError("Flower's simulation engine ended without a result; see its log above")
    return ended["state"]


def _nodes(grid: Grid, clients: list[str]) -> dict[str, int]:
    """Node id by client, once all nodes are there; the engine numbers its nodes at random, so they are sorted."""
    until = time.monotonic() + WAIT_S
    while len(ids := sorted(grid.get_node_ids())) < len(clients):
        if time.monotonic() > until:
            raise ConfigError(f"Flower's engine started {len(ids)} of {len(clients)} nodes in {WAIT_S:.0f} s")
        time.sleep(0.1)
    asked = [transport.pack("query", b"which", i, "which") for i in ids]
    replies = list(grid.send_and_receive(asked, timeout=WAIT_S))
    found = {}
    for reply in replies:
        part = transport.unpack(reply, 64)
        if not isinstance(part, bytes):
            raise ConfigError(f"a node did not say which client it is: {part.reason}")
        found[clients[int(part)]] = reply.metadata.src_node_id
    return found


def _client_app(config: str, folder: str, run: str) -> ClientApp:
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        part = int(context.node_config["partition-id"])
        if transport.unpack(message, MAX_PLAN_BYTES) == b"which":
            return transport.pack_reply(message, str(part).encode())
        return transport.answered(
            message, lambda *asked: _resident(config, folder, run)[part].answer(*asked), MAX_PLAN_BYTES
        )

    app.train()(answer)
    app.evaluate()(answer)
    app.query()(answer)
    return app


@lru_cache(maxsize=1)
def _resident(config: str, folder: str, run: str) -> list[Any]:
    """The clients of this worker process in the run of this name, in roster order, on a base that is loaded once."""
    import torch

    from fedft.simulations import workplace as runs

    parsed = configs.from_dict(json.loads(config))
    torch.set_num_threads(parsed.local.threads)
    place = runs.workplace(parsed, folder=Path(folder))
    job = job_on(parsed, place.base, runs.whose(place.clients), run)
    clients = [place.clients[name] for name in sorted(place.clients, key=str.encode)]
    for client in clients:
        client.join(job)  # without being asked: any worker may be the one that trains it
    return clients
