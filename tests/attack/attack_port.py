"""Unauthenticated (and half-authenticated) traffic at a fedft server's port; what it costs the gate and honest sites.

    python tests/attack/attack_port.py --port 9443 --ca keys/ca.pem --pid GATE_PID
                                       [--node-key site/keys/node.key] [--only loris,...]

Each attack prints one line of JSON: what was done, the gate's memory before, at its peak and after (MiB), open files,
and what an honest probe (TLS handshake and a POST that is refused) saw meanwhile. Loopback only; bounded; stops by
itself.
"""

import argparse
import base64
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

PULL = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n"
EMPTY = b"Content-Length: 0\r\n\r\n"
LIST = b"/v1/control/list-nodes HTTP/1.1\r\nHost: x\r\n"
REQUESTS = {
    "GET /": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "control": b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "runtime": b"POST /v1/runtime/push-messages HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "traversal": b"POST /v1/fleet/../control/start-run HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "traversal %2e": b"POST /v1/fleet/%2e%2e/control/list-nodes HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "double slash": b"POST /" + LIST + EMPTY,
    "absolute": b"POST https://x" + LIST + EMPTY,
    "empty secret": b"POST " + LIST + b"x-fedft-secret: \r\n" + EMPTY,
    "method override": PULL + b"X-HTTP-Method-Override: GET\r\n" + EMPTY,
    "te+cl": PULL + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two cl": PULL + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "cl 1_0": PULL + b"Content-Length: 1_0\r\n\r\nhello",
    "cl -1": PULL + b"Content-Length: -1\r\n\r\n",
    "cl 2^70": PULL + b"Content-Length: 1180591620717411303424\r\n\r\n",
    "websocket": b"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAA\r\nSec-WebSocket-Version: 13\r\n\r\n",
    "h2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30),
    "nul in path": b"POST /v1/fleet/pull\x00 HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "bad key b64": PULL + b"flwr-public-key: !!!\r\n" + EMPTY,
    "register": b"POST /v1/fleet/register-node HTTP/1.1\r\nHost: x\r\n" + EMPTY,
    "docs": b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n",
    "openapi": b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n",
    "TRACE": b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n",
}
BODY = 8 * 2**20


@dataclass
class Gate:
    """The server that is attacked: where it listens, and the process that answers there."""

    port: int
    ca: Path
    pid: int

    def context(self) -> ssl.SSLContext:
        """A TLS client that trusts the server's authority."""
        made = ssl.create_default_context(cafile=str(self.ca))
        made.check_hostname = False
        return made

    def tcp(self, timeout: float = 15) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def tls(self, timeout: float = 15) -> ssl.SSLSocket:
        """A connection behind its handshake."""
        return self.context().wrap_socket(self.tcp(timeout), server_hostname="localhost")

    def ask(self, data: bytes, timeout: float = 15) -> str:
        """The status line of the answer to `data`, or the name of what went wrong."""
        try:
            with self.tls(timeout) as s:
                s.sendall(data)
                return s.recv(4096).split(b"\r\n")[0][:60].decode("latin1") or "closed"
        except OSError as e:
            return type(e).__name__

    def probe(self) -> dict[str, Any]:
        """What an honest stranger sees: answer, and seconds until it came."""
        began = time.monotonic()
        return {"answer": self.ask(PULL + EMPTY, 20), "s": round(time.monotonic() - began, 2)}

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
    """Looks at the gate, ten times a second, and probes it, every two seconds, for as long as its block lasts."""

    gate: Gate
    probes: list[dict[str, Any]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.before = (self.gate.memory(), self.gate.files())
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
            self.most = [max(self.most[0], self.gate.memory()), max(self.most[1], self.gate.files())]

    def _probe(self) -> None:
        while True:
            self.probes.append(self.gate.probe())
            if self.stop.wait(2):
                return

    def report(self, attack: str, did: dict[str, Any]) -> None:
        """Print the line of an attack."""
        line = {
            "attack": attack,
            "did": did,
            "rss_before": self.before[0],
            "rss_peak": self.most[0],
            "rss_after": self.gate.memory(),
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


def odd(gate: Gate, a: argparse.Namespace) -> None:
    """One request each of many odd kinds, and what is no TLS 1.3."""
    with Watch(gate) as w:
        got = {name: gate.ask(data, 6) for name, data in REQUESTS.items()}
        bare = {
            "plain http": b"GET / HTTP/1.1\r\n\r\n",
            "garbage": os.urandom(2000),
            "alert": b"\x15\x03\x03\0\x02\x02(",
        }
        for name, data in bare.items():
            with gate.tcp(5) as s:
                try:
                    s.sendall(data)
                    got[name] = repr(s.recv(40))
                except OSError as e:
                    got[name] = type(e).__name__
        older = gate.context()
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        try:
            older.wrap_socket(gate.tcp(5)).close()
            got["TLS 1.2"] = "ACCEPTED"
        except OSError as e:
            got["TLS 1.2"] = f"refused {getattr(e, 'reason', '')}"
    w.report("odd", got)


def header(gate: Gate, a: argparse.Namespace) -> None:
    """One endless header, then endlessly many short ones."""
    many = b"".join(b"h%d: v\r\n" % i for i in range(60000))
    for name, head, piece, times in (
        ("header", b"X-A: ", b"a" * 2**20, a.header_mib),
        ("headers", b"", many, max(1, a.header_mib // 2)),
    ):
        sent, end = 0, "all sent"
        with Watch(gate) as w:
            try:
                with gate.tls() as s:
                    s.sendall(PULL + head)
                    for _ in range(times):
                        s.sendall(piece)
                        sent += len(piece)
                    time.sleep(min(a.hold, 12))
            except OSError as e:
                end = type(e).__name__
        w.report(name, {"bytes": sent, "end": end})


def hold(gate: Gate, a: argparse.Namespace, name: str, begin: bytes | None) -> None:
    """Many connections that say no more than `begin` (None: not even a handshake): are they ever closed?"""
    held: list[Any] = []
    with Watch(gate) as w:
        end = ""
        for _ in range(a.conns):
            try:
                held.append(gate.tcp(5) if begin is None else gate.tls(10))
                if begin:
                    held[-1].sendall(begin)
            except OSError as e:
                end = f"{type(e).__name__}: {e}"[:60]
                break
        time.sleep(a.hold)
        opened = len(held)
        alive = still_open(held)
    w.report(name, {"opened": opened, "stopped_by": end, "hold_s": a.hold, "still_open_after": alive})


def loris(gate: Gate, a: argparse.Namespace) -> None:
    """Many TLS connections, each with half a request line."""
    hold(gate, a, "loris", b"POST /v1/fl")


def raw(gate: Gate, a: argparse.Namespace) -> None:
    """Many TCP connections without a TLS handshake."""
    hold(gate, a, "raw", None)


def flood(gate: Gate, a: argparse.Namespace) -> None:
    """Many requests over 8 connections at a time, for a minute at most."""
    answers: Counter[str] = Counter()
    end = time.monotonic() + 60

    def one() -> None:
        for _ in range(a.requests // 8):
            answers[gate.ask(PULL + EMPTY, 20)] += 1
            if time.monotonic() > end:
                return

    with Watch(gate) as w:
        began = time.monotonic()
        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    w.report("flood", {"requests": answers.total(), "per_s": round(answers.total() / seconds), "answers": answers})


def body(gate: Gate, a: argparse.Namespace) -> None:
    """With a site's public node key and no signature: bodies of 8 MiB that never end."""
    from cryptography.hazmat.primitives import serialization as pem

    key = pem.load_pem_private_key(a.node_key.read_bytes(), None).public_key()
    public = base64.b64encode(key.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo))
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nflwr-public-key: " + public
    held: list[Any] = []
    with Watch(gate) as w:
        end = ""
        for _ in range(min(a.conns, 60)):
            try:
                held.append(gate.tls(20))
                held[-1].sendall(head + b"\r\nContent-Length: %d\r\n\r\n" % BODY)
                held[-1].sendall(bytes(BODY - 1))
            except OSError as e:
                end = f"{type(e).__name__}: {e}"[:80]
                break
        time.sleep(min(a.hold, 35))
        opened = len(held)
        alive = still_open(held)
    w.report("body", {"opened": opened, "MiB_each": BODY // 2**20, "stopped_by": end, "still_open_after": alive})


ATTACKS = {f.__name__: f for f in (odd, flood, header, body, loris, raw)}


def main() -> None:
    """Carry out the attacks asked for, one after the other."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--ca", type=Path, required=True)
    p.add_argument("--pid", type=int, required=True)
    p.add_argument("--node-key", type=Path)
    p.add_argument("--only", default=",".join(ATTACKS))
    p.add_argument("--hold", type=float, default=40, help="seconds")
    p.add_argument("--conns", type=int, default=1100)
    p.add_argument("--requests", type=int, default=10_000)
    p.add_argument("--header-mib", type=int, default=48)
    a = p.parse_args()
    gate = Gate(a.port, a.ca, a.pid)
    for name in a.only.split(","):
        if name != "body" or a.node_key:
            ATTACKS[name](gate, a)
    sys.stdout.write(json.dumps({"end_probe": gate.probe(), "rss": gate.memory()}) + "\n")


if __name__ == "__main__":
    main()
