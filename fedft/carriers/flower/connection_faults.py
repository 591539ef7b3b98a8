"""What is wrong between a site and its server, in the words of the site's operator."""

import time
from email.utils import parsedate_to_datetime

import httpx

CLOCK_S = 4  # Flower refuses logins from clocks 5 s ahead


def status(e: BaseException) -> int:
    """The HTTP status that an error is about, or 0 if it is about none."""
    return e.response.status_code if isinstance(e, httpx.HTTPStatusError) else 0


def transient(e: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    return isinstance(e, httpx.TransportError) or status(e) >= 500


def reason(e: Exception, address: str) -> str:
    """Why a request to the server at `address` failed, in a line for the operator of this site."""
    if isinstance(e, httpx.HTTPStatusError):
        return refusal(e.response, address)
    text = str(e)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("verify failed: ")[2].partition(" (")[0]
        return f"TLS: the certificate of {address} is refused: {why} (is ca.pem that of this server?)"
    cut = "UNEXPECTED_EOF" in text  # a connection that ends in the handshake says nothing about TLS
    if isinstance(e, httpx.ConnectError) and any(word in text for word in ("SSL", "TLS")) and not cut:
        return f"TLS: {address} does not speak TLS 1.3 as a fedft server does: {text[:200]}"
    if isinstance(e, httpx.TimeoutException):
        return f"server {address} does not answer in time"
    return f"server {address} cannot be reached: {text[:200] or type(e).__name__}"


def refusal(response: httpx.Response, address: str) -> str:
    """The meaning of a server's answer that is no success, in a line for the operator of this site."""
    code = response.status_code
    if code == 401:
        ahead = _clock_ahead(response)
        if abs(ahead) > CLOCK_S:
            side = "ahead of" if ahead > 0 else "behind"
            return f"server {address} refuses our login: this machine's clock is {abs(ahead):.0f} s {side} the server's"
        return f"server {address} does not know this site's node key: not enrolled, or revoked"
    if code == 412:
        why = "not enrolled, or another process with its key is connected, or was killed a moment ago"
        return f"SuperLink {address} does not take this site's node key: {why}"
    if code == 503:
        return f"server {address} is starting, or too busy"
    return f"server {address} answered {code} to {response.request.url.path}"


def _clock_ahead(response: httpx.Response) -> float:
    """Seconds by which our clock is ahead of the server's, by the Date of its answer."""
    try:
        return time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return 0.0
