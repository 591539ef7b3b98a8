"""Workers of a fleet that are actors of Ray, on this machine or on the machines of a cluster; needs the extra `ray`.

    with Actors("auto", begin, starts, ["cuda", "cuda"], threads=1) as crew: ...

An actor has a GPU of its own where its device is "cuda", and stays on its machine to the end. A payload is put into
Ray's store once for all workers. What actors log, Ray shows on this process's standard error. A worker that is stopped
finishes its call, and its answers are late.
"""

import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from fedft import __version__
from fedft.carriers.fleet import crew as crews
from fedft.carriers.fleet import worker
from fedft.carriers.fleet.crew import Order, Said
from fedft.carriers.fleet.processes import Start
from fedft.carriers.interface import Post
from fedft.errors import ConfigError, RunPaused, first_line

START_S = 600.0  # for a cluster that is busy to start the actors, and for them to load their models
AHEAD = 2  # answers of a worker that wait in Ray's store until they are taken


def here() -> dict[str, str]:
    """The versions that this machine has of what the bytes of a run depend on; not for which device torch is built."""
    libraries = ("torch", "numpy", "transformers")
    return {"fedft": __version__, **{name: version(name).partition("+")[0] for name in libraries}}


class Resident:
    """What lives in an actor: the post of its clients."""

    def __init__(self) -> None:
        self._post: Post | None = None

    def begin(self, module: str, told: str, versions: Mapping[str, str]) -> tuple[str, bytes]:
        """A worker's first line, "ready" or "failed", once the function `begin` of `module` has made its post.

        Each says which machine's it is. It fails, too, where this machine has not the `versions` (`here`) of the run's.
        """
        node = {"node": platform.node()}
        try:
            if unlike := [
                f"{name} {v}, the run has {versions[name]}" for name, v in here().items() if v != versions[name]
            ]:
                raise ConfigError(f"has {unlike[0]}; the bytes of a run depend on it")
            self._post, facts = import_module(module).begin(json.loads(told))
        except Exception as e:
            line, nothing = worker.failure(e)
            return _on_the_way(({**line, **node}, nothing))
        return _on_the_way(({"is": "ready", **node, **facts}, b""))

    def work(self, line: bytes, *payloads: bytes) -> Iterator[tuple[str, bytes]]:
        """What the worker says to a call."""
        assert self._post is not None, "`begin` comes first"
        orders = crews.orders(json.loads(line)["letters"], payloads)
        for said in worker.answers(self._post, orders):
            yield _on_the_way(said)


def _on_the_way(said: Said) -> tuple[str, bytes]:
    return json.dumps(said[0]), said[1]


class Actors:
    """A crew of Ray's actors; a context that ends them."""

    def __init__(
        self, address: str, module: str, starts: Sequence[Start], devices: Sequence[str], threads: int
    ) -> None:
        """Join the cluster at `address`, or begin one on this machine for "local"; start the actors, wait for them.

        `module` has a function `begin`, as `worker.serve` takes one. Raises what a worker found wrong as it began, and
        ConfigError where there is no such cluster, or it has too few CPUs or GPUs.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray: Any = ray
        self._starts = starts
        cpus, gpus = threads * len(starts), sum(device.startswith("cuda") for device in devices)
        self._joined = not ray.is_initialized()
        if self._joined:
            _join(ray, address, cpus)
        self._streams: dict[int, Any] = {}
        """What comes of the call of each worker that has one."""
        self._stored: dict[int, dict[bytes, Any]] = {}
        """By worker, where the payloads of its last call are: others of the cohort may come to them later."""
        self._actors: list[Any] = []
        self.facts: list[dict[str, Any]] = []
        try:
            self._check_room(cpus, gpus)
            kind = ray.remote(Resident)
            for device in devices:
                own = {"num_cpus": threads, "num_gpus": int(device.startswith("cuda"))}
                self._actors.append(kind.options(max_restarts=0, **own).remote())
            told = [json.dumps(s.told) for s in starts]
            begun = [a.begin.remote(module, t, here()) for a, t in zip(self._actors, told, strict=True)]
            for number, ref in enumerate(begun):
                line = json.loads(self._get(number, ref, START_S)[0])
                if line["is"] == "failed":
                    crews.raise_failure(f"{starts[number].name} on {line['node']}", line)
                self.facts.append(line)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Actors":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, cpus: int, gpus: int) -> None:
        there = self._ray.cluster_resources()
        if there.get("CPU", 0) < cpus or there.get("GPU", 0) < gpus:
            has = f"{there.get('CPU', 0):g} and {there.get('GPU', 0):g}"
            raise ConfigError(f"[server] workers: {cpus} CPUs and {gpus} GPUs are wanted, Ray's cluster has {has}")

    def _get(self, number: int, ref: Any, timeout_s: float | None = None) -> tuple[str, bytes]:
        """What an actor has given. Raises RunPaused where it has died, or does not come to it in time.

        ConfigError where its machine has not what it imports.
        """
        try:
            found: tuple[str, bytes] = self._ray.get(ref, timeout=timeout_s)
        except self._ray.exceptions.GetTimeoutError as e:
            raise RunPaused(f"{self._starts[number].name} has not begun after {timeout_s:.0f} s; is Ray busy?") from e
        except self._ray.exceptions.RayError as e:
            if lacking := re.search(r"ModuleNotFoundError: (.*)", str(e)):
                need = f"every machine of the cluster needs fedft {__version__} and what it stands on"
                raise ConfigError(f"{self._starts[number].name}: {lacking[1]} on its machine; {need}") from None
            raise RunPaused(f"{self._starts[number].name} died: {first_line(e)}; --resume goes on") from e
        return found

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Send a call to a worker that is done with the one before."""
        line, payloads = crews.call(orders)
        known = {payload: ref for stored in self._stored.values() for payload, ref in stored.items()}
        self._stored[worker] = {p: known[p] if p in known else self._ray.put(p) for p in payloads}
        method = self._actors[worker].work.options(num_returns="streaming", _generator_backpressure_num_objects=AHEAD)
        self._streams[worker] = method.remote(line, *self._stored[worker].values())

    def stop(self, worker: int) -> None:
        """Nothing: a worker finishes its call."""

    def hear(self, timeout_s: float) -> Iterator[tuple[int, Said]]:
        """(worker, what it says), of one worker; waits until one says something, or for so long.

        Raises RunPaused with the reason where a worker has died.
        """
        streams = dict(self._streams)
        ready, _ = self._ray.wait(list(streams.values()), timeout=timeout_s, fetch_local=True)
        for stream in ready:
            number = next(n for n, known in streams.items() if known is stream)
            try:
                ref = next(stream)
            except StopIteration:
                raise RunPaused(
                    f"{self._starts[number].name} died in the middle of its work; --resume goes on"
                ) from None
            line, payload = self._get(number, ref)
            said = json.loads(line)
            if said["is"] != "answer":
                del self._streams[number]
            yield number, (said, payload)

    def close(self) -> None:
        """End the actors, and leave the cluster if this joined it."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._streams.clear()
        self._stored.clear()
        if self._joined:
            self._ray.shutdown()


def _join(ray: Any, address: str, cpus: int) -> None:
    """Join a cluster, or begin one. Raises ConfigError where there is none."""
    own: dict[str, Any] = {}
    before = os.environ.get("PYTHONPATH", "")
    if address == "local":  # its processes are this one's, and import what this one can
        own = {"num_cpus": cpus, "include_dashboard": False}
        os.environ["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    try:
        ray.init(address=address, logging_level=logging.WARNING, **own)
    except (ConnectionError, ValueError, RuntimeError) as e:
        raise ConfigError(f"[server] ray = {address!r}: {first_line(e)}") from e
    finally:
        os.environ["PYTHONPATH"] = before
