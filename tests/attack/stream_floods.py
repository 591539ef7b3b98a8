"""Floods below and above TLS against the server's end of the carrier, while an honest site's rounds go on.

    python tests/attack/stream_floods.py --seconds 10 --processes 2 [--only new_keys,half,...]

A server process carries rounds of 64 KiB to one honest site and back, as fast as they go, the site in a process of its
own. First nobody attacks; then, for `--seconds` each, so many processes do one of the things below. One line of JSON
for each: what the attackers managed, rounds a second, the slowest round, the server's CPU share (1 is a core), its
memory (MiB) and open files. The attackers take CPU time of the same machine: compare with `busy`, where they do nothing
but compute.

    by an enrolled site  new_keys, new_keys_both (TLS KeyUpdate), records (of one byte), pings, grants, trickle
    by a stranger        handshakes (whole), half (a ClientHello, then nothing), chains (long certificates), http2
                         (a certificate made up, then the preface, SETTINGS, PING and CONTINUATION)
    by a key that is known   knocks (comes again and again)
"""

import argparse
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path

from carried import House, running, wait
from hostile_tls import HostileTls, client_hello, long_chain

from fedft.carriers.stream import frames, tls
from fedft.carriers.stream.frames import Kind, frame

ROUND = 64 * 1024
MANY = frame(Kind.PING) * 4096
H2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + 500 * (
    b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\6\0\0\0\0\0" + bytes(8) + b"\0\0\1\x09\0\0\0\0\1\0"
)


class Target:
    """What an attacker knows: the port, the authority, and a file of a key."""

    def __init__(self, folder: Path, port: int, key: str) -> None:
        self.folder, self.port, self.key = folder, port, folder / f"{key}.key"
        self.ca = (folder / "server" / "ca.pem").read_bytes()

    def connect(self, chain: Path | None = None) -> ssl.SSLSocket:
        """A connection behind its handshake."""
        context = tls.for_site(self.ca, self.key, check_host=False)
        if chain:
            context.load_cert_chain(chain, self.key)
        return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port), 5), server_hostname="localhost")

    def hello(self) -> bytes:
        """HELLO of another start of the site each time."""
        return frame(Kind.HELLO, 0, frames.hello(os.urandom(16)))


def _keys(target: Target, both: bool) -> Generator[bool]:
    with HostileTls(target.port, target.key) as end:
        end.say(target.hello())
        while True:
            yield end.change_keys(both)


def new_keys(target: Target) -> Generator[bool]:
    return _keys(target, both=False)


def new_keys_both(target: Target) -> Generator[bool]:
    return _keys(target, both=True)


def records(target: Target) -> Generator[bool]:
    with HostileTls(target.port, target.key) as end:
        end.say(target.hello())
        ping = frame(Kind.PING)
        while True:
            for i in range(len(ping)):
                yield end.say(ping[i : i + 1])


def _stream(target: Target, data: bytes) -> Generator[bool]:
    with closing(target.connect()) as sock:
        sock.sendall(target.hello())
        sock.settimeout(0.5)
        while True:
            sock.sendall(data)
            yield True


def pings(target: Target) -> Generator[bool]:
    return _stream(target, MANY)


def grants(target: Target) -> Generator[bool]:
    return _stream(target, frame(Kind.GRANT, 1, frames.OFFSET.pack(0)) * 2048)


def http2(target: Target) -> Generator[bool]:
    return _stream(target, H2)


def trickle(target: Target) -> Generator[bool]:
    with closing(target.connect()) as sock:
        sock.sendall(target.hello())
        while True:
            sock.sendall(frame(Kind.PING)[:1])
            time.sleep(1)
            yield True


def handshakes(target: Target) -> Generator[bool]:
    while True:
        with closing(target.connect()) as sock:
            yield bool(sock.recv(100))


def knocks(target: Target) -> Generator[bool]:
    while True:
        with closing(target.connect()) as sock:
            sock.sendall(target.hello())
            yield bool(sock.recv(100))


def half(target: Target) -> Generator[bool]:
    hello, held = client_hello(target.port, target.ca, [tls.PROTOCOL]), list[socket.socket]()
    while True:
        held.append(sock := socket.create_connection(("127.0.0.1", target.port), 5))
        sock.sendall(hello)
        if len(held) > 400:
            held.pop(0).close()
        yield True


def chains(target: Target) -> Generator[bool]:
    chain = long_chain(target.folder, target.key, 90_000)
    while True:
        with closing(target.connect(chain)) as sock:
            yield bool(sock.recv(100))


def busy(target: Target) -> Generator[bool]:
    while True:
        yield sum(range(1000)) > 0


STRANGERS = (handshakes, half, chains, http2)
ATTACKS: dict[str, Callable[[Target], Generator[bool]]] = {
    f.__name__: f for f in (busy, new_keys, new_keys_both, records, pings, grants, trickle, knocks, *STRANGERS)
}


def attack(name: str, folder: Path, port: int, number: int, seconds: float) -> Counter[str]:
    """How often an attacker did it, again and again until the time was over."""
    target = Target(folder, port, "stranger" if ATTACKS[name] in STRANGERS else f"eve{number}")
    did, end = Counter[str](), time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with closing(ATTACKS[name](target)) as deeds:
                for done in deeds:
                    did["done" if done else "failed"] += 1
                    if not done or time.monotonic() > end:
                        break
        except OSError as e:
            did[type(e).__name__] += 1
            time.sleep(0.01)
    return did


def serve(folder: Path, processes: int, beat: float) -> None:
    """The server's process: rounds without end; a line every `beat` seconds: [rounds, slowest, CPU s, MiB, files]."""
    house = House(folder, "ann", *(f"eve{n}" for n in range(processes)), "stranger")
    del house.members["stranger"]
    sys.stdout.write(f"{house.link.port}\n")
    sys.stdout.flush()
    node, plan = house.online("ann")["ann"], os.urandom(ROUND)
    while True:
        rounds, slowest, until, began = 0, 0.0, time.monotonic() + beat, time.monotonic()
        while (now := time.monotonic()) < until:
            assert house.ask(node, plan) == plan
            rounds, slowest = rounds + 1, max(slowest, time.monotonic() - now)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        held = [pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))]
        sys.stdout.write(json.dumps([rounds / (time.monotonic() - began), slowest, time.process_time(), *held]) + "\n")
        sys.stdout.flush()


def attend(folder: Path, port: int) -> None:
    """The honest site's process."""
    from fedft.carriers.stream.site_node import Node

    ca, key = (folder / "server" / "ca.pem").read_bytes(), folder / "ann.key"
    with running(Node(f"127.0.0.1:{port}", ca, key), handle=lambda kind, payload, reply: reply(payload)):
        time.sleep(10**6)


@contextmanager
def started(*role: object) -> Iterator[subprocess.Popen[str]]:
    """A process of this file; it ends with the block."""
    command = [sys.executable, __file__, "--role", *map(str, role)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read(process: subprocess.Popen[str], lines: list[list[float]]) -> None:
    """Collect the server's lines."""
    with suppress(ValueError):
        for line in process.stdout or ():
            lines.append(json.loads(line))


def told(name: str, lines: list[list[float]], did: Counter[str], beat: float) -> None:
    """Print the line of an attack."""
    n = len(lines)
    figures = {
        "attack": name,
        "did": did,
        "rounds_per_s": round(sum(x[0] for x in lines) / n, 1),
        "slowest_s": round(max(x[1] for x in lines), 3),
        "server_cpu": round((lines[-1][2] - lines[0][2]) / max(1, n - 1) / beat, 2),
        "mib": [round(lines[0][3]), round(max(x[3] for x in lines))],
        "files": int(max(x[4] for x in lines)),
    }
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Start server and site, and carry out the attacks asked for, one after the other."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    p.add_argument("--seconds", type=float, default=10)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--only", default=",".join(ATTACKS))
    a = p.parse_args()
    if a.role:
        name, folder, number, *beat = a.role
        return (
            attend(Path(folder), int(number))
            if name == "attend"
            else serve(Path(folder), int(number), *map(float, beat))
        )
    beat = min(1.0, a.seconds)
    with (
        ProcessPoolExecutor(a.processes, get_context("fork")) as attackers,
        tempfile.TemporaryDirectory() as folder,
        started("serve", folder, a.processes, beat) as server,
    ):
        list(attackers.map(abs, range(a.processes)))  # they begin here, before there is a thread
        assert server.stdout
        port = int(server.stdout.readline())
        lines: list[list[float]] = []
        threading.Thread(target=read, args=(server, lines), daemon=True).start()
        with started("attend", folder, port):
            wait(lambda: len(lines) > max(2, a.seconds))
            told("nobody", lines[1:], Counter(), beat)
            for name in a.only.split(","):
                time.sleep(min(2, a.seconds))  # for what is left of the one before
                lines.clear()
                began = time.monotonic()
                ends = [attackers.submit(attack, name, Path(folder), port, n, a.seconds) for n in range(a.processes)]
                did = sum((end.result() for end in ends), Counter[str]())
                wait(lambda: len(lines) > 2 and lines)
                assert time.monotonic() < began + 10 * a.seconds + 60, f"{name} does not end"
                told(name, lines[1:], did, beat)


if __name__ == "__main__":
    main()
