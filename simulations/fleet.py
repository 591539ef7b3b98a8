"""How a run's letters reach its clients: in this process, or in the workers of `[server] workers`.

    with fleet.post(place, folder) as post:
        state = run.loop(post).run(place.clients)

A worker loads the base model once, on its device, and the rows of its own clients. Clients are dealt out by their names
and stay where they are, so none of them is ever behind for it. What they answer is what they answer in one process, and
so are the bytes of the run; with `[server] together`, whose clients share passes within a worker, for as many workers.
"""

import hashlib
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedft import allowed_code
from fedft.carriers.fleet.actors import Actors
from fedft.carriers.fleet.post import FleetPost, dealt
from fedft.carriers.fleet.processes import Processes, Start
from fedft.carriers.interface import Post
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.simulations.workplace import Workplace, local_post, whose

MODULE = "fedft.simulations.fleet_worker"
VISIBLE = "CUDA_VISIBLE_DEVICES"
MARK = ".fleet-"  # an empty file of the run folder, by which workers see that the folder is theirs, too


def devices(config: RunConfig, clients: int) -> list[str]:
    """The device of each worker, at most one for each of so many clients; none where this process trains."""
    wanted = config.server.workers
    if wanted is None:
        return []
    if isinstance(wanted, list):
        return wanted[:clients]
    device = config.model.device
    if device != "cuda" or config.server.ray is not None:
        return [device] * min(wanted, clients)
    return [f"cuda:{n % max(1, _cards())}" for n in range(min(wanted, clients))]


def check(config: RunConfig) -> None:
    """Return None where a run's workers can be had on this machine. Raises ConfigError in one line."""
    if config.server.workers is None:
        return
    if config.server.ray is not None:
        if find_spec("ray") is None:
            raise ConfigError('[server] ray: Ray is not installed here; pip install "fedft[ray]"')
        return
    if os.name != "posix":
        raise ConfigError("[server] workers: processes share sockets, which this system does not let them do")
    there = _cards()
    for device in devices(config, 2**31):
        kind, _, number = device.partition(":")
        if kind == "cuda" and int(number or 0) >= there:
            raise ConfigError(f"[server] workers: {device}: there are {there} CUDA devices here")


def _cards() -> int:
    import torch

    return torch.cuda.device_count()


def pinned(device: str, visible: str | None) -> tuple[str, dict[str, str]]:
    """(what a worker calls its device, the variables that leave it no other one).

    `visible` is CUDA_VISIBLE_DEVICES of this process, None where it is not set.

    >>> pinned("cuda:1", "4,6"), pinned("cpu", None)
    (('cuda:0', {'CUDA_VISIBLE_DEVICES': '6'}), ('cpu', {}))
    """
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return device, {}
    shown = visible.split(",") if visible is not None else []
    own = shown[int(number or 0)] if shown else number or "0"
    return "cuda:0", {VISIBLE: own}


@contextmanager
def post(place: Workplace, folder: Path) -> Iterator[Post]:
    """The post that carries letters to the clients of a run in `folder`; its workers, if any, end with the block.

    Raises ConfigError and DataError for what a worker finds wrong as it begins, before any training: a device that is
    not there, or another model, other rows or another folder than here, as on another machine. RunPaused: one died.
    """
    for left in folder.glob(f"{MARK}*"):
        left.unlink()  # of a start that was killed: the folder is ours, and nobody looks for that one any more
    chosen = devices(place.config, len(place.clients))
    if not chosen:
        yield local_post(place.clients)
        return
    worker_of = dealt(place.clients, len(chosen))
    mark = folder.resolve() / f"{MARK}{secrets.token_hex(8)}"
    mark.touch()
    try:
        crew = _crew(place.config, chosen, worker_of, mark)
    finally:
        mark.unlink()
    with crew:
        for number, facts in enumerate(crew.facts):
            _check_same(place, _named(number, chosen), _whose(worker_of, number), facts)
        yield FleetPost(crew, worker_of, max(int(facts.get("together", 1)) for facts in crew.facts))


def _crew(config: RunConfig, chosen: list[str], worker_of: Mapping[str, int], mark: Path) -> Processes | Actors:
    """The workers on these devices, which have begun."""
    starts = []
    for number, device in enumerate(chosen):
        inside, environment = pinned(device, os.environ.get(VISIBLE)) if config.server.ray is None else (device, {})
        told = {
            "config": config.to_dict(),
            "device": inside,
            "clients": _whose(worker_of, number),
            "mark": str(mark),
            "allow": os.environ.get(allowed_code.VARIABLE, ""),
        }
        starts.append(Start(_named(number, chosen), told, environment))
    if config.server.ray is None:
        return Processes(MODULE, starts)
    return Actors(config.server.ray, MODULE, starts, chosen, config.local.threads)


def _named(number: int, chosen: list[str]) -> str:
    return f"worker {number + 1} of {len(chosen)} ({chosen[number]})"


def _whose(worker_of: Mapping[str, int], number: int) -> list[str]:
    return sorted((client for client, worker in worker_of.items() if worker == number), key=str.encode)


def _check_same(place: Workplace, name: str, clients: Collection[str], facts: Mapping[str, Any]) -> None:
    """Raise ConfigError where a worker, perhaps on another machine, has not what this process has."""
    if facts["base"] != place.base.digest:
        found, ours = facts["base"][:12], place.base.digest[:12]
        raise ConfigError(f"{name}: its base model {place.config.model.id} is {found}, here it is {ours}")
    if facts["rows"] != rows_digest({c: place.clients[c] for c in clients}):
        raise ConfigError(
            f"{name}: its rows of {place.config.data.train} are others than here; share the data's folder"
        )


def rows_digest(clients: Mapping[str, Client]) -> str:
    """SHA-256 over the names and training rows of clients, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in whose(clients):
        digest.update(part)
    return digest.hexdigest()
