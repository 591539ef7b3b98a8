"""Flower's SuperLink as a process of its own, behind the gate (`superlink_gate.py`).

stdin   the secret on one line; its end means that our server is gone, and this process goes too
stdout  "ready" on one line, once the port answers
"""

import argparse
import asyncio
import ctypes
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedft.carriers.flower.superlink_gate import MAX_REQUEST, Gate, is_plain

IDLE_S = 30  # a connection without a request is closed, so that strangers cannot hold them; nodes ask every second
MAX_CONNECTIONS = 1024  # at once: each takes memory before anybody has said who they are
TRIM_S = 10.0  # between two times that freed memory is given back to the system


def _die_with(parent: int) -> None:
    """End this process when the parent has ended, however that happened; now and then, give memory back."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # glibc keeps every chunk that was ever freed
    trimmed_at = time.monotonic()
    while os.getppid() == parent:
        if select.select([sys.stdin], [], [], 1.0)[0] and not os.read(sys.stdin.fileno(), 1024):
            break
        if time.monotonic() - trimmed_at > TRIM_S:
            trim(0)
            trimmed_at = time.monotonic()
    os._exit(0)


def main() -> None:
    """Serve until SIGTERM, or until the parent process has ended."""
    parser = argparse.ArgumentParser()
    for name in ("--cert", "--key"):
        parser.add_argument(name, required=True)
    for name in ("--socket", "--max-body-bytes"):
        parser.add_argument(name, required=True, type=int)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's whole group: our server decides
    secret = os.read(sys.stdin.fileno(), 1024).decode("ascii").strip()
    threading.Thread(target=_die_with, args=[os.getppid()], daemon=True).start()
    _serve(args, secret)


def _serve(args: argparse.Namespace, secret: str) -> None:
    """Serve Flower behind the gate, on the socket that was handed over, until SIGTERM."""
    import ssl

    import uvicorn

    flwr_log = logging.getLogger("flwr")
    flwr_log.setLevel(logging.WARNING)
    for handler in flwr_log.handlers:
        handler.setFormatter(logging.Formatter("%(levelname)s SuperLink: %(message)s"))  # Flower's own is in colours
    listener = socket.socket(fileno=args.socket)
    flower = _flower(listener, args.cert, args.key)
    state = flower.state.linkstate_factory.state()
    most = 2 * args.max_body_bytes + MAX_REQUEST  # an honest reply has Flower's records around it, and is sent again
    gate = Gate(flower, secret, lambda key: state.get_node_id_by_public_key(key) is not None, is_plain, most)
    server, protocol = _server_classes()
    served = uvicorn.Config(
        gate,
        http=protocol,
        ssl_certfile=args.cert,
        ssl_keyfile=args.key,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=1,
        limit_concurrency=MAX_CONNECTIONS,
    )
    gc.collect()
    gc.freeze()  # all of Flower stays; looking through it again and again costs a fifth of a large transfer
    gc.set_threshold(10_000, 20, 50)
    served.load()
    assert served.ssl is not None
    served.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    server(served).run(sockets=[listener])


def _flower(listener: socket.socket, cert: str, key: str) -> Any:
    """Flower's SuperLink as an ASGI app that keeps all it has in memory."""
    from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig
    from flwr.superlink.main import create_app

    host, port = listener.getsockname()[:2]
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host=host,
        port=port,
        insecure=False,
        certificates=None,  # only Flower's own gRPC servers and executors read these
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=cert,
        ssl_keyfile=key,
        database=FLWR_IN_MEMORY_DB_NAME,
        isolation="process",
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


def _server_classes() -> tuple[Any, Any]:
    """uvicorn's server, which says when it is ready and ends on SIGTERM alone, and its HTTP, which closes idle ends."""
    import uvicorn
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            signal.signal(signal.SIGTERM, lambda *_: setattr(self, "should_exit", True))
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    class Protocol(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)  # whose timer starts only after the first request
            self.timeout_keep_alive_task = self.loop.call_later(IDLE_S, self.timeout_keep_alive_handler)

    return Server, Protocol


if __name__ == "__main__":
    main()
