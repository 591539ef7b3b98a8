"""Strangers at a fedft server's port, and an enrolled site that misbehaves; what it costs the server and honest sites.

    python tests/attack/attack_port.py --port 9443 --ca keys/ca.pem --pid SERVER_PID --node-key site/keys/node.key
                                       [--only raw,loris,...]

Each attack prints one line of JSON: what was done, the server's memory before, at its peak and after (MiB), open files,
and what an honest site that knocks saw meanwhile. Loopback only; bounded; stops by itself.
"""

import argparse
import json
import os
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from fedft.carriers import connectivity_check
from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.frames import Kind, frame
from fedft.security.private_keys import private_bytes

HELLO = frame(Kind.HELLO, 0, frames.hello(bytes(16)))
SAID = {
    "nothing": b"",
    "http": b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),
    "noise": os.urandom(4096),
    "no hello": frame(Kind.PING),
    "long hello": frames.HEAD.pack(Kind.HELLO, 2**31, 0),
    "another version": frame(Kind.HELLO, 0, frames.HELLO.pack(7, bytes(16), 0, 7)),
    "hello": HELLO,
}
"""What somebody says after the handshake."""
MISDEEDS = {
    "hello twice": HELLO,
    "no frame": b"\xff" * 64,
    "a piece of 2 GiB": frames.HEAD.pack(Kind.PIECE, 2**31, 1),
    "a piece that was not granted": frame(Kind.PIECE, 1, bytes(100)),
    "a message of 2^60 bytes": frames.announcement(1, "answer", 2**60),
    "a message nobody asked for": frames.announcement(2**40, "answer", 4, b"here"),
    "a size that lies": frame(Kind.MESSAGE, 1, frames.SIZE.pack(9, 6), b"answer"),
    "a grant of what is not there": frame(Kind.GRANT, 5, frames.OFFSET.pack(2**50)),
}
"""What an enrolled site says after HELLO."""


@dataclass
class Server:
    """The server that is attacked: where it listens, its process, and a site's key."""

    port: int
    ca: Path
    pid: int
    key: Path

    def tcp(self, timeout: float = 15) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def tls(self, key: Path | None, timeout: float = 15) -> ssl.SSLSocket:
        """A connection behind its handshake, with this key, or with none."""
        context = tls.for_site(self.ca.read_bytes(), key, check_host=False)
        return context.wrap_socket(self.tcp(timeout), server_hostname="localhost")

    def ask(self, key: Path | None, data: bytes, timeout: float = 15) -> str:
        """The first frame of the answer to `data`, or the name of what went wrong."""
        try:
            with self.tls(key, timeout) as s:
                s.sendall(data)
                got = s.recv(4096)
                if len(got) < frames.HEAD.size:
                    return "closed"
                kind, size, _ = frames.HEAD.unpack_from(got)
                return f"{Kind(kind).name} {got[16 : 16 + size].decode('ascii', 'replace')}".strip()[:40]
        except OSError as e:
            return type(e).__name__

    def probe(self) -> dict[str, Any]:
        """What an honest site sees that knocks: whether it is known, and seconds until it heard that."""
        began = time.monotonic()
        try:
            known = connectivity_check.knock(f"127.0.0.1:{self.port}", self.ca.read_bytes(), self.key).known
            answer = "known" if known else "unknown"
        except connectivity_check.Unreachable as e:
            answer = str(e)
        return {"answer": answer, "s": round(time.monotonic() - began, 2)}

    def memory(self) -> int:
        """Resident memory in MiB; -1 for a process that is gone."""
        try:
            text = Path(f"/proc/{self.pid}/status").read_text()
            return int(next(x for x in text.splitlines() if x.startswith("VmRSS")).split()[1]) // 1024
        except (OSError, StopIteration):
            return -1

    def files(self) -> int:
        """How many files the process has open."""
        try:
            return len(os.listdir(f"/proc/{self.pid}/fd"))
        except OSError:
            return -1


@dataclass
class Watch:
    """Looks at the server, ten times a second, and knocks, every two seconds, for as long as its block lasts."""

    server: Server
    probes: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.before = (self.server.memory(), self.server.files())
        self.most = list(self.before)
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._look), threading.Thread(target=self._probe)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _look(self) -> None:
        while not self.stop.wait(0.1):
            self.most = [max(self.most[0], self.server.memory()), max(self.most[1], self.server.files())]

    def _probe(self) -> None:
        while True:
            self.probes.append(self.server.probe())
            if self.stop.wait(2):
                return

    def report(self, attack: str, did: dict[str, Any]) -> None:
        """Print the line of an attack."""
        line = {
            "attack": attack,
            "did": did,
            "rss_before": self.before[0],
            "rss_peak": self.most[0],
            "rss_after": self.server.memory(),
            "fds_before": self.before[1],
            "fds_peak": self.most[1],
            "probes": len(self.probes),
            "worst_probe": max(self.probes, key=lambda x: x["s"], default=None),
            "probe_answers": sorted({x["answer"] for x in self.probes}),
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


def still_open(held: list[Any]) -> int:
    """How many connections the other side has not closed; closes them all."""
    alive = 0
    for s in held:
        s.settimeout(0.001)
        try:
            alive += s.recv(1) != b""
        except (TimeoutError, ssl.SSLWantReadError):
            alive += 1
        except OSError:
            alive += 0
        s.close()
    return alive


def odd(server: Server, a: argparse.Namespace) -> None:
    """Each of SAID without a key and with a stranger's, what is no TLS 1.3, and misdeeds of an enrolled site."""
    with Watch(server) as w, tempfile.TemporaryDirectory() as folder:
        stranger = Path(folder) / "node.key"
        stranger.touch(0o600)
        stranger.write_bytes(private_bytes(ec.generate_private_key(ec.SECP384R1())))
        got = {f"no key: {name}": server.ask(None, data, 12) for name, data in SAID.items()}
        got |= {f"a stranger's: {name}": server.ask(stranger, data, 12) for name, data in SAID.items()}
        bare = {"http": SAID["http"], "garbage": os.urandom(2000), "alert": b"\x15\x03\x03\0\x02\x02("}
        for name, data in bare.items():
            with server.tcp(5) as s:
                try:
                    s.sendall(data)
                    got[f"no TLS: {name}"] = repr(s.recv(40)[:7])
                except OSError as e:
                    got[f"no TLS: {name}"] = type(e).__name__
        older = tls.for_site(server.ca.read_bytes(), server.key, check_host=False)
        older.minimum_version, older.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        try:
            older.wrap_socket(server.tcp(5)).close()
            got["TLS 1.2"] = "ACCEPTED"
        except OSError as e:
            got["TLS 1.2"] = f"refused {getattr(e, 'reason', '')}"
        for name, data in MISDEEDS.items():
            got[f"enrolled: {name}"] = server.ask(server.key, HELLO + data, 12)
    w.report("odd", got)


def hold(server: Server, a: argparse.Namespace, name: str, begin: Callable[[], Any]) -> None:
    """Many connections that say no more than `begin` does: are they ever closed?"""
    held: list[Any] = []
    with Watch(server) as w:
        end = ""
        for _ in range(a.conns):
            try:
                held.append(begin())
            except OSError as e:
                end = f"{type(e).__name__}: {e}"[:60]
                break
        time.sleep(a.hold)
        opened = len(held)
        alive = still_open(held)
    w.report(name, {"opened": opened, "stopped_by": end, "hold_s": a.hold, "still_open_after": alive})


def raw(server: Server, a: argparse.Namespace) -> None:
    """Many TCP connections that say nothing."""
    hold(server, a, "raw", server.tcp)


def loris(server: Server, a: argparse.Namespace) -> None:
    """Many that begin a handshake."""

    def begin() -> socket.socket:
        s = server.tcp()
        s.sendall(b"\x16\x03\x01\x02\x00\x01\x00")
        return s

    hold(server, a, "loris", begin)


def again(server: Server, a: argparse.Namespace) -> None:
    """Silent ones that come again as soon as they are thrown out, for as long as `--hold` says."""
    held: list[socket.socket] = []
    came, end = 0, time.monotonic() + a.hold
    with Watch(server) as w:
        while time.monotonic() < end:
            try:
                while len(held) < a.conns:
                    held.append(server.tcp())
                    came += 1
            except OSError:  # the server's run has ended
                break
            for s in held:
                s.setblocking(False)
            held = [s for s in held if _open(s)]
            time.sleep(0.02)
        still_open(held)
    w.report("again", {"at_once": a.conns, "came": came, "s": a.hold})


def _open(s: socket.socket) -> bool:
    try:
        s.recv(1)
    except BlockingIOError:
        return True
    except OSError:
        pass
    s.close()
    return False


def flood(server: Server, a: argparse.Namespace) -> None:
    """Many handshakes without a key, 8 at a time, for a minute at most."""
    answers: Counter[str] = Counter()
    end = time.monotonic() + 60

    def one() -> None:
        for _ in range(a.requests // 8):
            answers[server.ask(None, HELLO, 20)] += 1
            if time.monotonic() > end:
                return

    with Watch(server) as w:
        began = time.monotonic()
        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    w.report("flood", {"requests": answers.total(), "per_s": round(answers.total() / seconds), "answers": answers})


def unread(server: Server, a: argparse.Namespace) -> None:
    """An enrolled site that says PING for ever and reads nothing, then one that sends what nobody asked for."""
    one = frames.announcement(2**40, "answer", 30_000, bytes(30_000))
    for name, data in (("unread", frame(Kind.PING) * 4096), ("unasked", one * 8)):
        sent, end = 0, "all sent"
        with Watch(server) as w:
            try:
                with server.tls(server.key) as s:
                    s.sendall(HELLO)
                    s.settimeout(5)
                    while sent < a.mib * 2**20:
                        s.sendall(data)
                        sent += len(data)
            except OSError as e:
                end = type(e).__name__
        w.report(name, {"bytes": sent, "end": end})


ATTACKS = {f.__name__: f for f in (odd, flood, unread, loris, raw, again)}


def main() -> None:
    """Carry out the attacks asked for, one after the other."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--ca", type=Path, required=True)
    p.add_argument("--pid", type=int, required=True)
    p.add_argument("--node-key", type=Path, required=True)
    p.add_argument("--only", default=",".join(ATTACKS))
    p.add_argument("--hold", type=float, default=40, help="seconds")
    p.add_argument("--conns", type=int, default=1100)
    p.add_argument("--requests", type=int, default=10_000)
    p.add_argument("--mib", type=int, default=48)
    a = p.parse_args()
    server = Server(a.port, a.ca, a.pid, a.node_key)
    for name in a.only.split(","):
        ATTACKS[name](server, a)
    sys.stdout.write(json.dumps({"end_probe": server.probe(), "rss": server.memory()}) + "\n")


if __name__ == "__main__":
    main()
