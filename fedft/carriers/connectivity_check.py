"""Whether a site can reach its server, and if not, why: one TLS handshake and one request, by the client's own way.

    reached = knock("fl.example.org:9443", ca, node_public)     Reached, or Unreachable(what was found, remedy)

Nobody is logged in and nothing is changed on the server.
"""

import base64
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

TIMEOUT_S = 10.0
PATH = "/v1/fleet/push-messages"  # of the sites' interface: an announcement of nothing is refused by the server's gate
KNOWN = {400: True, 401: False}  # the gate's answer to a registered key, and to a stranger's
AHEAD_S, BEHIND_S = 5.0, 305.0  # by which a site's clock may differ: Flower refuses logins beyond
EXPIRED, NOT_YET, SELF_SIGNED, OTHER_NAME = {10}, {9}, {18, 19, 20, 21}, {62, 64}  # OpenSSL's X509_V_ERR numbers


@dataclass(frozen=True)
class Reached:
    """What a server's answer over TLS tells about it."""

    seconds: float
    """Seconds that the handshake and the answer took."""
    until: datetime
    """When the server's certificate ends, in UTC."""
    ahead_s: float | None
    """Seconds by which this machine's clock is ahead of the server's, to a second; None: the server says no time."""
    known: bool | None
    """Whether the server knows the node key; None: its answer does not say."""


class Unreachable(Exception):
    """There was no answer over TLS: the message says what was found, `remedy` what to do about it."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


def knock(address: str, ca: bytes, node: bytes = b"", *, check_host: bool = True, proxies: bool = True) -> Reached:
    """Send one request that changes nothing to the server at `address`, and tell what its answer shows.

    Takes TIMEOUT_S at most for each step of connecting.

    Args:
        address: host:port.
        ca: PEM certificates to trust, and no others.
        node: the site's public node key in PEM, if the answer shall tell whether it is known there.
        check_host: whether the certificate must be for the host of the address.
        proxies: whether the environment's proxies are used, as `fedft client` does.
    Raises:
        Unreachable: there is no such server, or it is not the one of this authority.
    """
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = check_host
        context.load_verify_locations(cadata=ca.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError) as e:
        raise Unreachable("the CA file holds no certificates in PEM", "copy ca.pem from the server's operator") from e
    headers = {"flwr-public-key": base64.b64encode(node).decode()}
    started, before = time.monotonic(), time.time()
    try:
        with (
            httpx.Client(verify=context, timeout=TIMEOUT_S, trust_env=proxies, follow_redirects=False) as client,
            client.stream("POST", f"https://{address}{PATH}", headers=headers, content=b"") as response,
        ):
            until = _until(response)
            now = (before + time.time()) / 2
            response.read()
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError, ValueError) as e:
        raise _unreachable(address, e) from e
    known = KNOWN.get(response.status_code) if node and not response.content else None
    return Reached(time.monotonic() - started, until, _ahead(response, now), known)


def _until(response: httpx.Response) -> datetime:
    """When the certificate of the peer that responds ends, in UTC."""
    peer = response.extensions["network_stream"].get_extra_info("ssl_object").getpeercert()
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(peer["notAfter"]), UTC)


def _ahead(response: httpx.Response, now: float) -> float | None:
    """Seconds by which `now` (since 1970) is ahead of the time that the response states; None if it states none."""
    try:
        return now - parsedate_to_datetime(response.headers["date"]).timestamp() - 0.5  # it is cut to whole seconds
    except (KeyError, ValueError, TypeError):
        return None


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    while e is not None:
        yield e
        e = e.__cause__ or e.__context__


def _unreachable(address: str, e: Exception) -> Unreachable:
    """The error of a connection in an operator's words, with a remedy."""
    for cause in _causes(e):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _distrusted(address, cause)
        if isinstance(cause, ssl.SSLError):
            return _no_tls(address, cause)
        if isinstance(cause, socket.gaierror):
            host = address.rpartition(":")[0]
            return Unreachable(f"no address is known for {host}", "correct [server] address, or the name service")
        if isinstance(cause, ConnectionRefusedError):
            why = "start the server, or open the port to it; `fedft client` waits for it"
            return Unreachable(f"the connection to {address} is refused: nothing listens there", why)
        if isinstance(cause, ConnectionResetError | httpx.RemoteProtocolError):
            return Unreachable(f"{address} closes the connection", "see that the port is a fedft server's")
        if isinstance(cause, httpx.ProxyError):
            return Unreachable(f"the proxy does not connect to {address}", "set NO_PROXY to the server's host")
    if isinstance(e, httpx.TimeoutException):
        return Unreachable(
            f"{address} does not answer in {TIMEOUT_S:.0f} s", "see that a firewall lets the port through"
        )
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
