"""The board's HTTP: GET only, small requests, few at a time, and only for whom it is meant.

- A request has HEAD_BYTES and HEAD_S for its head; a body is not read. An answer that is not taken is given up.
- At most MAX_CONNECTIONS at a time, each a thread; what comes above is closed at once. The run is in other threads or
  another process, and reads nothing of ours.
- On a loopback address the Host header has to name this machine, so that no page of another site can have a browser
  read ours under a name that it made point here (DNS rebinding). On any other address a token is asked for, which that
  page does not know: `Authorization: Bearer TOKEN`, or ?token=TOKEN.
"""

import hmac
import io
import ipaddress
import logging
import os
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

from fedft.board.pages import OPEN, TEXT, Answer, Pages
from fedft.errors import ConfigError

log = logging.getLogger(__name__)

HEAD_BYTES = 16384  # a browser's is about 1 kB
HEAD_S = 10.0  # until the head is there
SEND_S = 30.0  # for each piece of an answer, of at most 64 KiB
MAX_CONNECTIONS = 64
POLL_S = 0.5  # between two looks at whether to end
LOOPBACK = ("localhost", "127.0.0.1", "::1")
TOKEN = "FEDFT_BOARD_TOKEN"
LEAST_TOKEN = 16  # letters
PLAIN = "the board listens beyond this machine and HTTP is not encrypted; ssh -L, or a proxy with TLS, keeps it private"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@contextmanager
def serving(folder: Path, host: str, port: int, option: str) -> Iterator[str]:
    """Serve the board of `folder` inside the block; gives the page's address, with the token where there is one.

    Args:
        folder: of a run or of runs, which need not be there yet.
        host: where to listen; beyond loopback, a token is drawn unless FEDFT_BOARD_TOKEN has one.
        port: 0 for any that is free.
        option: of the command, for messages.
    Raises:
        ConfigError: the address cannot be had, or the token is too short.
    """
    token = os.environ.get(TOKEN, "")
    if token and len(token) < LEAST_TOKEN:
        raise ConfigError(f"{TOKEN}: has {len(token)} letters, wanted at least {LEAST_TOKEN}")
    shown = f"/?token=${TOKEN}" if token else "/"
    if not token and not loopback(host):
        token = secrets.token_urlsafe(24)
        shown = f"/?token={token}"
    try:
        server = _Server(host, port, Pages(folder, token), local=loopback(host))
    except (OSError, OverflowError) as e:
        raise ConfigError(f"{option} {host}:{port}: cannot listen there: {getattr(e, 'strerror', e)}") from e
    if not loopback(host):
        log.warning(PLAIN)
    thread = threading.Thread(target=server.serve_forever, args=(POLL_S,), name="board", daemon=True)
    thread.start()
    try:
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{server.server_address[1]}{shown}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(socketserver.ThreadingTCPServer):
    """The listening socket, and the places of its connections."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, host: str, port: int, pages: Pages, *, local: bool) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.pages, self.local = pages, local
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((host, port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be had
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a request to the board failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection, which has one request."""

    server_version, sys_version = "fedft", ""

    def handle(self) -> None:
        """Read the head, answer, and close."""
        self.request_version, self.command, self.requestline = "HTTP/1.0", "", ""
        self.close_connection = True
        with suppress(OSError):  # who went away needs no answer
            head = self._head()
            if head is None:
                return
            self.connection.settimeout(SEND_S)
            self.rfile = io.BytesIO(head)
            self.raw_requestline = self.rfile.readline()
            if self.parse_request():
                self._send(self._answer())

    def _head(self) -> bytes | None:
        """The request's head; None if it does not come in time, or is too long, which is answered."""
        head, ends = b"", time.monotonic() + HEAD_S
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            if len(head) > HEAD_BYTES:
                self.send_error(431, f"the request's head is longer than {HEAD_BYTES} bytes")
                return None
            self.connection.settimeout(max(0.01, ends - time.monotonic()))
            try:
                piece = self.connection.recv(4096)
            except TimeoutError:
                piece = b""
            if not piece:
                return None
            head += piece
        return head

    def _answer(self) -> Answer:
        server = cast(_Server, self.server)
        if self.command != "GET":
            return _refused(405, "the board is read-only: GET only", {"Allow": "GET"})
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1:
            return _refused(400, "wanted one Host header")
        if server.local and _name(hosts[0]) not in LOOPBACK:
            return _refused(421, "this address is for this machine only: wanted localhost as Host")
        said = urlsplit(self.path)
        if said.scheme or said.netloc:
            return _refused(400, "wanted a path")
        query = parse_qs(said.query, max_num_fields=8)
        if server.pages.token and said.path not in OPEN and not self._knows(query, server.pages.token):
            return _refused(401, "wanted ?token=TOKEN or Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        return server.pages.answer(said.path, query.get("run", [""])[0])

    def _knows(self, query: dict[str, list[str]], token: str) -> bool:
        kind, _, given = (self.headers.get("Authorization") or "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else query.get("token", [""])[0]
        return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.code)
        for name, value in {**HEADERS, **answer.headers, "Content-Type": answer.kind}.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        for piece in answer.body:
            self.wfile.write(piece)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, in a line of plain text that repeats nothing of it."""
        self._send(_refused(code, message if code == 431 and message else "not a request that the board takes"))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address may hold the token."""


def _refused(code: int, said: str, headers: dict[str, str] | None = None) -> Answer:
    return Answer(code, TEXT, [f"{said}\n".encode()], headers or {})


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    name = host[: host.rindex("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
    return name.strip("[]").lower()
