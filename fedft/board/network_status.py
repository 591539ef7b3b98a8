"""A board's /status.json, read over the network, from a server that may be anybody's.

The answer is bounded in bytes (MAX_BYTES) and in time (ANSWER_S), no redirection is followed, so that the token goes
where it was meant to, and what is no status as this version shows it is refused. No proxy is asked.
"""

import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from fedft.board import status_form
from fedft.carriers.interface import printable
from fedft.errors import ConfigError

MAX_BYTES = 2**24  # some 50,000 sites
ANSWER_S = 20.0  # for connection and answer
READ_BYTES = 2**16
HELP = "`fedft server --board` and `fedft board` say the address of a board"


@dataclass(frozen=True)
class BoardAddress:
    """Where a board is, and what it is asked."""

    scheme: str
    host: str
    port: int
    path: str
    """Of /status.json there, without the query."""
    run: str
    """Name of a run in the board's folder; "" for the folder."""
    token: str = field(repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def address(text: str) -> BoardAddress | None:
    """The board that HOST:PORT or an address as a browser shows it (http or https, ?run= and ?token=) names.

    None where the text is neither. Raises ConfigError for an address that cannot be one.
    """
    if re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^\s/:\[\]@?#]+):\d{1,5}", text):
        text = f"http://{text}"
    if not re.match(r"https?://", text, re.IGNORECASE):
        return None
    try:
        said = urlsplit(text)
        port = said.port
        host = (said.hostname or "").encode("idna" if not said.netloc.startswith("[") else "ascii").decode()
    except ValueError:  # of UnicodeError, too
        host = ""
    if not host or port == 0 or "@" in said.netloc or re.search(r"[\x00-\x20\x7f]", text):
        raise ConfigError(f"{printable(text)}: wanted HOST:PORT, or http:// or https:// and a host")
    query = parse_qs(said.query, max_num_fields=8)
    path = said.path.removesuffix("status.json").rstrip("/") + "/status.json"
    port = port or {"http": 80, "https": 443}[said.scheme]
    run, token = (query.get(key, [""])[0] for key in ("run", "token"))
    return BoardAddress(said.scheme, host, port, quote(path, safe="/%"), run, token)


def read(board: BoardAddress, token: str = "", ca: Path | None = None) -> tuple[dict[str, Any], float]:
    """The status that a board shows, and the time at which it was read, seconds since 1970 by the board's clock.

    Args:
        board: where it is; a token in its address goes before `token`.
        token: that it asks for; "" for none.
        ca: certificates, in PEM, of those who may vouch for an https board; None: whom this machine trusts.
    Raises:
        ConfigError: in one line, no board is there, it does not take the token, or what is there is no board.
    """
    token = board.token or token
    if not (token.isascii() and token.isprintable()):
        raise ConfigError("the board's token: wanted letters, digits and signs of ASCII")
    with _one_line(board), _connected(board, _trusted(board, ca)) as connection:
        headers = {"Accept": "application/json", "Connection": "close"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        query = f"?run={quote(board.run, safe='')}" if board.run else ""
        connection.request("GET", board.path + query, headers=headers)
        body = b""
        with connection.getresponse() as answer:
            while piece := answer.read(READ_BYTES):
                body += piece
                if len(body) > MAX_BYTES:
                    raise ConfigError(f"{board}: answers with more than {MAX_BYTES} bytes, which is no board's status")
    return _status(board, answer, body, bool(token)), _clock(answer)


def _trusted(board: BoardAddress, ca: Path | None) -> ssl.SSLContext | None:
    """Who may vouch for the board; None where nothing is encrypted. Raises ConfigError."""
    if board.scheme == "http":
        if ca is not None:
            raise ConfigError(f"--ca: {board} is not encrypted and shows no certificate; wanted https://")
        return None
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except OSError as e:  # of SSLError, too
        raise ConfigError(f"--ca {ca}: no certificates in PEM ({e.strerror or e})") from e


@contextmanager
def _connected(board: BoardAddress, trusted: ssl.SSLContext | None) -> Iterator[http.client.HTTPConnection]:
    """A connection that is closed with the block, and cut when ANSWER_S are over, however slowly the other side talks.

    Raises TimeoutError if it was cut.
    """
    connection = http.client.HTTPConnection(board.host, board.port)
    late = threading.Event()
    plain = socket.create_connection((board.host, board.port), ANSWER_S)
    with plain.dup() as handle:  # of the same connection; TLS takes the other one over

        def cut() -> None:
            late.set()
            with suppress(OSError):
                handle.shutdown(socket.SHUT_RDWR)

        watch = threading.Timer(ANSWER_S, cut)
        watch.daemon = True
        watch.start()
        try:
            connection.sock = trusted.wrap_socket(plain, server_hostname=board.host) if trusted else plain
            yield connection
            if late.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            watch.cancel()
            plain.close()
            connection.close()


@contextmanager
def _one_line(board: BoardAddress) -> Iterator[None]:
    """Make what a connection can end with a ConfigError of one line."""
    try:
        yield
    except ssl.SSLCertVerificationError as e:
        why = printable(e.verify_message or e.reason or e)
        raise ConfigError(f"{board}: its certificate is not trusted ({why}); --ca FILE names who vouches for it") from e
    except ssl.SSLError as e:
        why = printable(e.reason or e)
        raise ConfigError(f"{board}: no TLS is spoken there ({why}); is it http://{board.host}:{board.port}?") from e
    except TimeoutError as e:
        raise ConfigError(f"{board}: no answer within {ANSWER_S:g} s; {HELP}") from e
    except (ConnectionResetError, BrokenPipeError) as e:
        raise ConfigError(f"{board}: closed without an answer: no board, or one at which too many look; {HELP}") from e
    except http.client.HTTPException as e:
        raise ConfigError(f"{board}: what answers there is no board: no whole answer of HTTP; {HELP}") from e
    except (OSError, UnicodeError) as e:
        why = printable(getattr(e, "strerror", None) or e)
        raise ConfigError(f"{board}: no board there ({why}); {HELP}") from e


def _status(board: BoardAddress, answer: http.client.HTTPResponse, body: bytes, token: bool) -> dict[str, Any]:
    """The status in an answer. Raises ConfigError for any other answer."""
    said = {
        401: "wants another token" if token else "wants a token: FEDFT_BOARD_TOKEN, or --token-file",
        421: "is for its own machine only: ssh -L PORT:127.0.0.1:PORT brings it here",
    }.get(answer.status)
    if said:
        raise ConfigError(f"{board}: the board {said}")
    try:
        found = json.loads(body, parse_constant=_none)
    except (ValueError, RecursionError):
        found = None
    if answer.status == 404 and found == {"error": "no such run"}:
        raise ConfigError(f"{board}: the board has no run {f'{board.run!r:.100}' if board.run else 'yet'}")
    if answer.status != 200:
        raise ConfigError(f"{board}: what answers there is no board (HTTP {answer.status}); {HELP}")
    if why := status_form.fault(found):
        raise ConfigError(f"{board}: what answers there is no board of this version: {why}")
    return found


def _none(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _clock(answer: http.client.HTTPResponse) -> float:
    """The time at which it was answered, by the clock of who answered; by ours, where it does not say."""
    try:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError, OverflowError):
        return time.time()
