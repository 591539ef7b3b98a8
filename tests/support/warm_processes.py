"""Python processes that begin with their imports done: forked from one that has torch, transformers and fedft loaded.

    warm_processes.run(["-m", "fedft", "strategies"])            # as subprocess.run, of the words behind `python`
    process = warm_processes.start(["-m", "fedft", "server", "run.toml"], log, log)

A cold process spends five CPU seconds on imports, and the suite starts more than a hundred. Forked ones have a process
id, memory, files, signals, session and exit code of their own, and end as an interpreter ends. They share the seed of
hashes with one another, not with the test. What is about imports, environments that libraries read at import, or a
start from nothing takes `subprocess`. `tests/conftest.py` switches it on; WARM_PROCESSES=0 makes all of them cold, as
they are in `benchmarks/deployment/` by hand.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SWITCH = "WARM_PROCESSES"  # "0": cold; "1": warm; else the address of the process that all are forked from
MOST_BYTES = 1 << 20  # of a request: words and environment
LOADED = (
    "torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft",
    "fedft.cli.main", "fedft.cli.deploy", "fedft.server.app", "fedft.client.app", "fedft.simulations.run",
)  # fmt: skip


class Forked:
    """As much of a `subprocess.Popen` as tests need."""

    def __init__(
        self, words: Sequence[str], stdout: IO[Any], stderr: IO[Any], cwd: Path | None, env: Mapping[str, str] | None
    ) -> None:
        """As `start`."""
        self.args = [sys.executable, *words]
        self.returncode: int | None = None
        self._parent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._parent.connect(_address())
        own = dict(os.environ if env is None else env)
        if own.get(SWITCH) == "1":  # written down before there was an address
            own[SWITCH] = os.environ[SWITCH]
        asked = {"words": [*words], "cwd": str(cwd or Path.cwd()), "env": own}
        with open(os.devnull, "rb") as nothing:
            files = [file.fileno() for file in (nothing, stdout, stderr)]
            socket.send_fds(self._parent, [json.dumps(asked).encode()], files)
        self.pid = int(self._parent.recv(16))

    def poll(self) -> int | None:
        """Exit code, None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._parent], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = int(self._parent.recv(16))
            self._parent.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """To the process alone; nothing where it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


Process = subprocess.Popen[bytes] | Forked


def start(
    words: Sequence[str],
    stdout: IO[Any],
    stderr: IO[Any],
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """A process that leads a session of its own and has nothing to read.

    Args:
        words: those behind `python`: `-m MODULE ...`, or a script's path and its own.
        stdout, stderr: open files.
        env: all of its environment; None: ours.
    """
    if sys.platform == "linux" and os.environ.get(SWITCH, "0") != "0":
        return Forked(words, stdout, stderr, cwd, env)
    files = {"stdin": subprocess.DEVNULL, "stdout": stdout, "stderr": stderr}
    return subprocess.Popen([sys.executable, *words], **files, cwd=cwd, env=env, start_new_session=True)


def run(
    words: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 600,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *words], capture_output=True, text=True)`, without standard input."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = start(words, out, err, cwd, env)
        try:
            code = process.wait(timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        said = [file.seek(0) or file.read().decode(errors="replace") for file in (out, err)]
    done = subprocess.CompletedProcess([sys.executable, *words], code, *said)
    if check:
        done.check_returncode()
    return done


def _address() -> str:
    """Of the process that all are forked from; the first that asks starts it, and it ends with that one."""
    if os.environ[SWITCH] != "1":
        return os.environ[SWITCH]
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = f"{folder.name}/asking"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
        asking.bind(address)
        asking.listen(64)
        parent = subprocess.Popen(
            [sys.executable, __file__, str(asking.fileno())],
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its threads would be there before the fork
            pass_fds=[asking.fileno()],
            stdin=subprocess.PIPE,  # its end says that we have ended
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
    atexit.register(lambda: (parent.communicate(), folder.cleanup()))
    os.environ[SWITCH] = address
    return address


def _serve(asking: socket.socket) -> dict[str, Any] | None:
    """In a child: what was asked for, with its files in place. In the parent None, once its starter has ended."""
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    askers: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([asking, woken, 0], [], [])
        if 0 in ready:
            return None
        if woken in ready:
            os.read(woken, 4096)
            _tell(askers)
        if asking not in ready:
            continue
        asker, _ = asking.accept()
        said, files, _, _ = socket.recv_fds(asker, MOST_BYTES, 3)
        if pid := os.fork():
            askers[pid] = asker
            for file in files:
                os.close(file)
            continue
        os.setsid()  # before it is known: who asks may kill its group at once
        asker.send(str(os.getpid()).encode())
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for n, file in enumerate(files):
            os.dup2(file, n)
        for fd in (*files, woken, wake, *(end.detach() for end in (asking, asker, *askers.values()))):
            os.close(fd)
        asked: dict[str, Any] = json.loads(said)
        return asked


def _tell(askers: dict[int, socket.socket]) -> None:
    """Give the exit code of each child that has ended to who asked for it."""
    while askers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with askers.pop(pid) as asker, contextlib.suppress(OSError):
            asker.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(asked: dict[str, Any]) -> None:
    """Do what the words say, as `python` does."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background has it ignored
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    first, *rest = asked["words"]
    own = [p for p in asked["env"].get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [asked["cwd"] if first == "-m" else str(Path(first).parent), *own, *sys.path[1:]]
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = asked["words"]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    for name in LOADED:
        __import__(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork has one thread: nothing that is loaded may start another"
    gc.collect()
    gc.freeze()
    asked = _serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        _become(asked)
