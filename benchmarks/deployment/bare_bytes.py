"""The bytes of a round without the engine: over bare TLS sockets there and back, and durably to the disk."""

import os
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from shutil import rmtree

from fedft import durable

MIB = 2**20


def seconds_through_tls(keys: Path, mib: int, sites: int) -> float:
    """Seconds for `mib` MiB to each of `sites` other processes and back, side by side, over bare TLS sockets.

    Args:
        keys: folder with `server.pem`, `server.key` and `ca.pem`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    listener = socket.create_server(("127.0.0.1", 0))
    fork = get_context("fork")
    peers = [fork.Process(target=_echo, args=(keys / "ca.pem", listener.getsockname()[1], mib)) for _ in range(sites)]
    for peer in peers:
        peer.start()
    ends = [context.wrap_socket(listener.accept()[0], server_side=True) for _ in peers]
    for end in ends:
        end.recv(1)  # the peer is ready
    started = time.monotonic()
    with ThreadPoolExecutor(sites) as pool:
        list(pool.map(lambda end: _there_and_back(end, mib), ends))
    seconds = time.monotonic() - started
    for peer in peers:
        peer.join()
    for end in ends:
        end.close()
    listener.close()
    return seconds


def _echo(ca: Path, port: int, mib: int) -> None:
    """A peer: takes the bytes, then sends as many."""
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        ssl.create_default_context(cafile=str(ca)).wrap_socket(raw, server_hostname="localhost") as end,
    ):
        end.send(b"!")
        _take(end, mib)
        _give(end, mib)


def _there_and_back(end: ssl.SSLSocket, mib: int) -> None:
    _give(end, mib)
    _take(end, mib)


def _give(end: ssl.SSLSocket, mib: int) -> None:
    piece = os.urandom(MIB)
    for _ in range(mib):
        end.sendall(piece)


def _take(end: ssl.SSLSocket, mib: int) -> None:
    left, buffer = mib * MIB, bytearray(MIB)
    while left:
        left -= end.recv_into(buffer, min(left, MIB))


def seconds_to_disk(folder: Path, mib: int, sites: int) -> float:
    """Seconds for the durable writes a round waits for: answers side by side, journal entries in turn, the state."""
    body = os.urandom(mib * MIB)
    aside = folder / "bare"
    aside.mkdir()

    def write(i: int) -> None:
        durable.write(aside / str(i), body)

    started = time.monotonic()
    with ThreadPoolExecutor(sites) as pool:
        list(pool.map(write, range(sites)))
    for i in range(sites + 1):
        write(sites + i)
    seconds = time.monotonic() - started
    rmtree(aside)
    return seconds
