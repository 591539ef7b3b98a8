"""Whether a site can reach its server, and if not, why: one TLS handshake and one knock, by the client's own way.

    reached = knock("fl.example.org:9443", ca, Path("keys/node.key"))    Reached, or Unreachable(what was found, remedy)

Nobody is logged in, and a site that is connected stays so.
"""

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedft.carriers.stream import dial, frames, front, tls
from fedft.carriers.stream.channel import Channel
from fedft.carriers.stream.frames import Kind, Malformed, Reader

TIMEOUT_S = dial.CONNECT_S
EXPIRED, NOT_YET, SELF_SIGNED, OTHER_NAME = {10}, {9}, {18, 19, 20, 21}, {62, 64}  # OpenSSL's X509_V_ERR numbers


@dataclass(frozen=True)
class Reached:
    """What a server's answer over TLS tells about it."""

    seconds: float
    """Seconds that the handshake and the answer took."""
    until: datetime
    """When the server's certificate ends, in UTC."""
    known: bool | None
    """Whether the server knows the node key; None: it was not asked."""


class Unreachable(Exception):
    """There was no answer over TLS: the message says what was found, `remedy` what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


def knock(
    address: str, ca: bytes, node: Path | None = None, *, check_host: bool = True, proxies: bool = True
) -> Reached:
    """Knock at the server at `address`, which changes nothing there, and tell what its answer shows.

    Takes TIMEOUT_S at most for each step of connecting.

    Args:
        address: host:port.
        ca: PEM certificates to trust, and no others.
        node: file of the site's node key, if the answer shall tell whether it is known there.
        check_host: whether the certificate must be for the host of the address.
        proxies: whether the environment's proxies are used, as `fedft client` does.
    Raises:
        Unreachable: there is no such server, or it is not the one of this authority.
        KeyFault: the node key cannot be used.
    """
    try:
        context = tls.for_site(ca, node, check_host=check_host)
    except (ssl.SSLError, UnicodeDecodeError) as e:
        raise Unreachable("the CA file holds no certificates in PEM", "copy ca.pem from the server's operator") from e
    started = time.monotonic()
    try:
        with closing(dial.connect(address, context, proxies=proxies)) as channel:
            until = ssl.cert_time_to_seconds(str(channel.named()["notAfter"]))
            known = _asked(channel) if node else None
    except (OSError, ValueError, Malformed) as e:
        raise _unreachable(address, e) from e
    return Reached(time.monotonic() - started, datetime.fromtimestamp(until, UTC), known)


def _asked(channel: Channel) -> bool:
    """Whether the server knows the key that the connection was made with. Raises OSError, Malformed."""
    channel.settimeout(TIMEOUT_S)
    channel.send(memoryview(frames.frame(Kind.HELLO, 0, frames.hello(bytes(16), knocks=True))))
    reader, until = Reader(), time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        try:
            data = channel.recv()
        except BlockingIOError:  # a record that is not whole
            continue
        if not data:
            break
        for kind, _, body in reader.feed(memoryview(data)):
            if kind is Kind.WELCOME:
                return True
            if kind is Kind.REFUSE and bytes(body) == front.UNKNOWN.encode():
                return False
            why = bytes(body).decode("ascii", "replace") if kind is Kind.REFUSE else kind.name
            raise Malformed(frames.versions_in(why) or why)
    else:
        raise TimeoutError
    raise ConnectionResetError("closed without an answer")


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def _unreachable(address: str, e: Exception) -> Unreachable:
    """The error of a connection in an operator's words, with a remedy."""
    for cause in _causes(e):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _distrusted(address, cause)
        if isinstance(cause, ConnectionResetError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return Unreachable(f"{address} closes the connection", "see that the port is a fedft server's")
        if isinstance(cause, ssl.SSLError):
            return _no_tls(address, cause)
        if isinstance(cause, Malformed):
            why = "see that the port is a fedft server's, of this version"
            return Unreachable(f"{address} answers over TLS, but not as a fedft server does: {cause}", why)
        if isinstance(cause, socket.gaierror):
            host = address.rpartition(":")[0]
            return Unreachable(f"no address is known for {host}", "correct [server] address, or the name service")
        if isinstance(cause, dial.ProxyRefused):
            return Unreachable(f"the proxy does not connect to {address}: {cause}", "set NO_PROXY to the server's host")
        if isinstance(cause, ConnectionRefusedError):
            why = "start the server, or open the port to it; `fedft client` waits for it"
            return Unreachable(f"the connection to {address} is refused: nothing listens there", why)
        if isinstance(cause, TimeoutError):
            found = f"{address} does not answer in {TIMEOUT_S:.0f} s"
            return Unreachable(found, "see that a firewall lets the port through")
    said = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
    return Unreachable(f"{address} cannot be reached: {said}", "see address, route and firewall")


def _distrusted(address: str, e: ssl.SSLCertVerificationError) -> Unreachable:
    now = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if e.verify_code in EXPIRED:
        why = f"the server's operator runs `fedft keys renew`, if it is {now}"
        return Unreachable(f"the certificate of {address} has expired", why)
    if e.verify_code in NOT_YET:
        return Unreachable(f"the certificate of {address} is not valid yet", f"set the clock, which says {now}")
    if e.verify_code in OTHER_NAME:
        host = address.rpartition(":")[0]
        why = f"the server's operator runs `fedft keys renew` with --host {host} among its hosts"
        return Unreachable(f"the certificate of {address} is for other names", why)
    if e.verify_code in SELF_SIGNED:
        found = f"the certificate of {address} is of another authority"
        return Unreachable(found, "copy ca.pem from the server's operator, or correct the address")
    return Unreachable(
        f"the certificate of {address} is refused: {e.verify_message}", "show this to the server's operator"
    )


def _no_tls(address: str, e: ssl.SSLError) -> Unreachable:
    if e.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return Unreachable(f"{address} answers in plain text, not TLS", "correct the port, or what stands before it")
    if e.reason in ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "NO_PROTOCOLS_AVAILABLE"):
        return Unreachable(f"{address} does not speak TLS 1.3", "let the proxy before the server speak TLS 1.3")
    said = e.reason or str(e)
    return Unreachable(f"{address} breaks off the TLS handshake: {said}", "see that the port is a fedft server's")
