"""What a deployment's keys, certificate, roster and addresses lack; rows as those of `checks_machine.py`."""

import math
import shlex
import socket
import ssl
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedft.carriers import connectivity_check
from fedft.cli.checks_machine import FAIL, OK, WARN, Finding, findings_of, halves, proxies
from fedft.errors import ConfigError, FedftError
from fedft.security import new_keys, private_keys
from fedft.security import roster as keys

EXPIRY_WARN = timedelta(days=30)
HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where a server that listens on all addresses is reached from its own machine."""


# -- the way between a site and its server ---------------------------------------------------------------------------


def connection(address: str, ca: Path, node: Path | None = None, accepted: bytes = b"") -> Iterator[Finding]:
    """The site's way to its server: address, port, TLS with the pinned authority, and enrolment of its node key.

    `accepted`: further authorities in PEM, which the server has announced to the site.
    """
    try:
        reached = connectivity_check.knock(address, b"\n".join([_bytes(ca), accepted]), node)
    except connectivity_check.Unreachable as e:
        proxied = any(row.state == WARN for row in proxies(address.rpartition(":")[0].strip("[]")))
        yield Finding("server", FAIL, str(e), e.remedy + "; or the proxy is at fault" * proxied)
        return
    answered = f"{address} answers over TLS in {reached.seconds:.2f} s, certificate until {reached.until:%Y-%m-%d}"
    if reached.until - datetime.now(UTC) < EXPIRY_WARN:
        yield Finding("server", WARN, answered, "the server's operator runs `fedft keys renew`")
    else:
        yield Finding("server", OK, answered)
    if reached.known is False:
        remedy = "hand NAME.card.toml to the server's operator, who runs `fedft keys enrol`"
        yield Finding("enrolment", FAIL, "the server does not know this site's node key, or has revoked it", remedy)
    elif reached.known:
        yield Finding("enrolment", OK, "the server knows this site's node key")


def listening(host: str, port: int, ca: Path) -> Iterator[Finding]:
    """Whether a server can listen at host:port, or one with the authority `ca` listens there already."""
    where = f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as e:
        here = HERE.get(host, host)
        try:
            connectivity_check.knock(
                f"[{here}]:{port}" if ":" in here else f"{here}:{port}", _bytes(ca), check_host=False, proxies=False
            )
        except (connectivity_check.Unreachable, FedftError):
            remedy = f"another --listen, or end what listens there (`ss -ltnp 'sport = :{port}'`)"
            yield Finding("listen", FAIL, f"cannot listen on {where}: {e.strerror or e}", remedy)
        else:
            yield Finding("listen", OK, f"a server with this certificate authority answers on {where}")
        return
    local = "; only this machine can connect (0.0.0.0: others, too)" if _is_loopback(host) else ""
    yield Finding("listen", OK, f"{where} is free{local}")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


# -- the server's folder and the site's ------------------------------------------------------------------------------


def certificate(folder: Path, hosts: Iterable[str] = ()) -> Iterator[Finding]:
    """The server's certificate: its authority, its names, its time, its key."""
    facts = new_keys.certificate_facts(folder / "server.pem")
    faults = dict.fromkeys([*facts.faults(), *(fault for host in hosts for fault in facts.faults(host))])
    for fault in faults:
        yield Finding("certificate", FAIL, *halves(fault))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(facts.path, folder / "server.key")
    except (OSError, ssl.SSLError) as e:
        found = f"{facts.path}: server.key beside it is not its key ({getattr(e, 'reason', None) or e})"
        yield Finding("certificate", FAIL, found, "copy both from the same backup")
        return
    if not faults:
        soon = facts.not_after - datetime.now(UTC) < EXPIRY_WARN
        found = f"for {', '.join(facts.names)}, until {facts.not_after:%Y-%m-%d}"
        yield Finding(
            "certificate", WARN if soon else OK, found, f"fedft keys renew {shlex.quote(str(folder))}" if soon else ""
        )


def server_keys(folder: Path) -> Iterator[Finding]:
    """The server's private keys: there, readable by this user alone, and the pair of what the sites hold."""
    yield from findings_of("keys", lambda: _loads(private_keys.load_ecdsa, folder / "server.key"))
    if (folder / "ca.key").exists():
        yield from findings_of("keys", lambda: _loads(private_keys.load_ecdsa, folder / "ca.key"))
    else:
        yield Finding(
            "keys", WARN, f"{folder / 'ca.key'}: not here", "`fedft keys renew` needs it; a backup must have it"
        )
    signing = private_keys.load_signing(folder / "signing.key")
    if private_keys.load_public(folder / "server.pub") != signing.public_key():
        remedy = "copy both from the same backup: the sites trust the one in server.pub"
        yield Finding("keys", FAIL, f"{folder / 'server.pub'}: not of signing.key beside it", remedy)
    else:
        yield Finding("keys", OK, f"{folder / 'signing.key'}, server.pub beside it is of it")


def site_keys(folder: Path, server_pub: Path) -> Iterator[Finding]:
    """The site's private keys and the server's public one."""
    yield from findings_of("keys", lambda: _loads(private_keys.load_signing, folder / "signing.key"))
    yield from findings_of("keys", lambda: _loads(private_keys.load_ecdsa, folder / "node.key"))
    private_keys.load_public(server_pub)
    yield Finding("keys", OK, f"{server_pub}: the server's public key")


def node_key(folder: Path) -> Path | None:
    """The file of the site's node key; None if it cannot be used, which is a finding of its own."""
    try:
        private_keys.load_ecdsa(folder / "node.key")
    except FedftError:
        return None
    return folder / "node.key"


def _loads(load: Callable[[Path], object], path: Path) -> Iterator[Finding]:
    load(path)
    yield Finding("keys", OK, str(path))


def roster(path: Path, quorum: float | None = None) -> Iterator[Finding]:
    """The sites that count; `quorum` is the share of those not revoked that a round of all of them needs."""
    states = [m.state() for m in keys.load_roster(path).members.values()]
    enrolled, asked = states.count("enrolled"), len(states) - states.count("revoked")
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    if not enrolled:
        yield Finding(
            "roster", FAIL, f"{path}: {counts or 'no sites'}", f"fedft keys enrol {shlex.quote(str(path.parent))} CARD"
        )
        return
    needed = max(1, math.ceil((quorum or 0) * asked - 1e-9))
    found = counts if quorum is None else f"{counts}; a round that asks all needs {needed}"
    if needed > enrolled:
        yield Finding("roster", FAIL, found, f"correct not_before and not_after in {path}, or lower [server] quorum")
    elif asked > enrolled:
        yield Finding("roster", WARN, found, f"sites outside their validity do not count; correct it in {path}")
    else:
        yield Finding("roster", OK, found)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read ({e.strerror}); copy the one in the server's key folder") from e
