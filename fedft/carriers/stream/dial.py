"""A site's way to its server: through a proxy if the environment names one, TCP, TLS; and what is wrong, in words."""

import base64
import socket
import ssl
import time
import urllib.parse
import urllib.request

from fedft.carriers.stream import pace
from fedft.carriers.stream.channel import Channel
from fedft.carriers.stream.connection import said

CONNECT_S = 10.0  # for each step
MAX_REPLY = 8192  # bytes of a proxy's answer


class ProxyRefused(OSError):
    """The proxy does not connect to the server."""


def connect(address: str, context: ssl.SSLContext, *, proxies: bool = True, bytes_s: float | None = None) -> Channel:
    """A connection to the server at `address` over TLS, which does not block from now on. Waits CONNECT_S a step.

    Args:
        address: host:port; an IPv6 address stands in brackets.
        context: what is trusted, and who we are.
        proxies: whether HTTPS_PROXY and NO_PROXY count.
        bytes_s: most bytes a second each way; None: as many as the network carries.
    Raises:
        OSError (ssl.SSLError is one), with a meaning that `reason` says.
    """
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    proxy = _proxy(host) if proxies else None
    way = (proxy.hostname or "", proxy.port or 3128) if proxy else (host, int(port))
    sock = socket.create_connection(way, CONNECT_S)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if proxy:
            _through(sock, proxy, address)
        if bytes_s is not None:
            sock = pace.paced(sock, bytes_s)
        found = Channel(sock, context, host)
        until = time.monotonic() + CONNECT_S
        done = found.shake(read=False)
        while not done:
            done = found.shake()
            if time.monotonic() > until:
                raise TimeoutError
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return found


def _proxy(host: str) -> urllib.parse.SplitResult | None:
    """The proxy that the environment names for this host."""
    found = urllib.request.getproxies_environment()
    url = found.get("https") or found.get("all")
    if not url or urllib.request.proxy_bypass(host):
        return None
    return urllib.parse.urlsplit(url if "://" in url else f"http://{url}")


def _through(sock: socket.socket, proxy: urllib.parse.SplitResult, address: str) -> None:
    """Have the proxy connect us. Raises ProxyRefused, OSError."""
    if proxy.scheme != "http":
        raise ProxyRefused(f"a proxy of kind {proxy.scheme!r} cannot be used, only http://")
    head = f"CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n"
    if proxy.username is not None:
        user = f"{urllib.parse.unquote(proxy.username)}:{urllib.parse.unquote(proxy.password or '')}"
        head += f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode('ascii')}\r\n"
    sock.sendall(f"{head}\r\n".encode())
    reply = b""
    while not reply.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)  # not one more: what follows is TLS
        if not byte or len(reply) > MAX_REPLY:
            raise ProxyRefused("it breaks off")
        reply += byte
    status = reply.split(b"\r\n")[0].decode("latin1").split(" ", 2)
    if len(status) < 2 or status[1] != "200":
        raise ProxyRefused(" ".join(status[1:])[:100] or "no answer of HTTP")


def reason(e: Exception, address: str) -> str:
    """Why the server at `address` could not be reached, in a line for the operator of this site."""
    if isinstance(e, ssl.SSLCertVerificationError):
        return f"TLS: the certificate of {address} is refused: {e.verify_message} (is ca.pem that of this server?)"
    if isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return f"TLS: {address} does not speak TLS 1.3 as a fedft server does: {said(e)}"
    if isinstance(e, ProxyRefused):
        return f"the proxy does not connect to {address}: {e}"
    if isinstance(e, TimeoutError):
        return f"server {address} does not answer in time"
    return f"server {address} cannot be reached: {said(e) if isinstance(e, OSError) else e}"
