"""Flower's SuperLink, started and stopped as a child process. Nothing in it is durable: it may die at any time."""

import os
import secrets
import select
import signal
import socket
import ssl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from fedft.carriers.flower import superlink_process
from fedft.errors import ConfigError

START_S = 60  # after which a SuperLink that does not answer is given up; a cold start imports all of Flower


class SuperLink:
    """A SuperLink on this machine, as a child process that dies with ours. Used by one thread.

    Args:
        host, port: where it listens; port 0 takes a free one.
        cert, key: PEM files of the server's TLS certificate and private key.
        folder: where Flower may write (it takes this for the user's home).
        max_body_bytes: the longest reply of a site.
    """

    def __init__(
        self,
        host: str,
        port: int,
        cert: Path,
        key: Path,
        folder: Path,
        max_body_bytes: int,
    ) -> None:
        self.host, self.port, self.secret = host, port, ""
        self._cert, self._key, self._folder = cert, key, folder
        self._max_body = max_body_bytes
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, anew if it runs, and wait until it answers; it has a new `secret` each time.

        Raises ConfigError if the port or the certificate cannot be used, or after START_S without an answer.
        """
        self.stop()
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError) as e:
            raise ConfigError(f"{self._cert}, {self._key}: not a certificate and its private key: {e}") from None
        try:
            listener = socket.create_server((self.host, self.port), family=_family(self.host, self.port), backlog=512)
        except OSError as e:
            raise ConfigError(f"cannot listen on {self.host}:{self.port}: {e.strerror or e}") from None
        with listener:
            _keep_alive(listener)
            self.port = listener.getsockname()[1]
            self.secret = secrets.token_urlsafe(32)
            self._process = self._spawn(listener)
        self._wait_ready(self._process)

    def alive(self) -> bool:
        """Whether the SuperLink's process runs."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End the process, if it runs; by force after five seconds."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with suppress(OSError):
                    pipe.close()

    @property
    def address(self) -> str:
        """host:port under which this machine reaches the SuperLink; the certificate must name that host."""
        host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process's number, while there is one."""
        return self._process.pid if self._process else None

    def _spawn(self, listener: socket.socket) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        options = {"cert": self._cert, "key": self._key, "socket": listener.fileno()}
        options["max-body-bytes"] = self._max_body
        quiet = {
            "FLWR_HOME": str(self._folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "MALLOC_ARENA_MAX": "2",
            # each large block is mapped and faulted in anew: in pages of 2 MiB that takes a fifth of the time
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"),
        }
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                superlink_process.__name__,
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            env={k: v for k, v in os.environ.items() if not k.startswith("FLWR_")} | quiet,
        )
        assert process.stdin is not None
        process.stdin.write(self.secret.encode("ascii") + b"\n")
        process.stdin.flush()
        return process

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], START_S)
        if not ready or process.stdout.readline() != b"ready\n":
            code = process.poll()
            self.stop()
            what = f"ended with {_code(code)}" if ready else f"did not answer within {START_S} s"
            raise ConfigError(f"the SuperLink process {what}: see its messages above")


def _family(host: str, port: int) -> socket.AddressFamily:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]


def _keep_alive(listener: socket.socket) -> None:
    """Let the system find out which of the accepted connections lead to a site that is no longer there."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if option := getattr(socket, name, None):  # not everywhere
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


def _code(code: int | None) -> str:
    return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
