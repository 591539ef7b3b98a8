"""Workers of a fleet that are processes on this machine, each with a pair of sockets to this one.

    with Processes("fedft.simulations.fleet_worker", [Start("worker 1 of 2 (cpu)", told, {}), ...]) as crew:
        crew.facts                                   what each said of itself when it had begun

They end with the block, whatever ends it, and with this process, however it dies.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, Any

from fedft.carriers.fleet import crew as crews
from fedft.carriers.fleet.crew import Order, Said
from fedft.carriers.fleet.worker import STOP
from fedft.errors import RunPaused

TAIL_BYTES = 4096  # of what a worker that died has written: enough for its last line
END_S = 5.0  # that a worker has to end once it is told, before it is killed


@dataclass(frozen=True)
class Start:
    """How one worker begins."""

    name: str
    """What messages call it."""
    told: Mapping[str, Any]
    """What it is told; JSON can hold it."""
    environment: Mapping[str, str]
    """Variables that it has beside those of this process."""


class Processes:
    """A crew of processes that run a Python module; a context that ends them."""

    def __init__(self, module: str, starts: Sequence[Start]) -> None:
        """Start a process for each worker and wait until all have begun.

        `module` ends in `worker.serve`. Raises what a worker found wrong as it began, and RunPaused where one died.
        """
        self._starts = starts
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[Connection] = []
        self._written: list[IO[bytes]] = []
        self._relayed: set[tuple[str, str]] = set()
        self.facts: list[dict[str, Any]] = [{} for _ in starts]
        try:
            for start in starts:
                self._begin(module, start)
            waiting = {*range(len(starts))}
            while waiting:
                for number, (line, _) in self.hear(1.0):
                    if line["is"] == "failed":
                        crews.raise_failure(starts[number].name, line)
                    self.facts[number] = line
                    waiting.discard(number)
        except BaseException:
            self.close()
            raise
        self._relayed.clear()

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, module: str, start: Start) -> None:
        ours, theirs = Pipe()
        written = tempfile.TemporaryFile()  # noqa: SIM115
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())],
            stdin=subprocess.PIPE,
            stdout=written,
            stderr=written,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, **start.environment},
        )
        theirs.close()
        self._processes.append(process)
        self._connections.append(ours)
        self._written.append(written)
        told = {**start.told, "level": logging.getLogger().getEffectiveLevel()}
        self._send(len(self._processes) - 1, json.dumps(told).encode())

    def give(self, worker: int, orders: Sequence[Order]) -> None:
        """Send a call to a worker that is done with the one before."""
        line, payloads = crews.call(orders)
        self._send(worker, line, *payloads)

    def stop(self, worker: int) -> None:
        """Tell a worker that nobody waits for the rest of its call."""
        self._send(worker, STOP)

    def _send(self, worker: int, *parts: bytes) -> None:
        try:
            for part in parts:
                self._connections[worker].send_bytes(part)
        except OSError as e:
            raise self._death(worker) from e

    def hear(self, timeout_s: float) -> Iterator[tuple[int, Said]]:
        """(worker, what it says), at most one of each; waits until one says something, or for so long.

        What a worker logs is logged here. Raises RunPaused with the reason where a worker has died.
        """
        for ready in wait(self._connections, timeout_s):
            number = next(n for n, connection in enumerate(self._connections) if connection is ready)
            try:
                line = json.loads(self._connections[number].recv_bytes())
                payload = self._connections[number].recv_bytes()
            except (EOFError, OSError) as e:
                raise self._death(number) from e
            if line["is"] == "log":
                self._log(number, line)
            else:
                yield number, (line, payload)

    def _log(self, worker: int, line: Mapping[str, Any]) -> None:
        """Log a worker's line; while they begin, what all of them say is said once."""
        said = line["name"], line["text"]
        if not (said in self._relayed and not self.facts[worker]):
            logging.getLogger(line["name"]).log(line["level"], "%s", line["text"])
        self._relayed.add(said)

    def _death(self, worker: int) -> RunPaused:
        """That a worker has died, and of what."""
        try:
            code = self._processes[worker].wait(END_S)
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            how = "does not answer"
        elif code == -signal.SIGKILL:
            how = "was killed (SIGKILL: as the system does where memory runs out)"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        last = self._last_line(worker)
        return RunPaused(f"{self._starts[worker].name} {how}{f': {last}' if last else ''}; --resume goes on")

    def _last_line(self, worker: int) -> str:
        """The last line that a worker has written on its standard error or output; "" for none."""
        file = self._written[worker]
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "")

    def close(self) -> None:
        """End all workers, at whatever they are; what they keep is on the disk as after any kill."""
        for process in self._processes:
            process.terminate()
        for process, connection, written in zip(self._processes, self._connections, self._written, strict=False):
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdin is not None:
                process.stdin.close()
            connection.close()
            written.close()
