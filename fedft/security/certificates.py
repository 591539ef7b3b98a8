"""X.509: the server's own certificate authority and the TLS certificates that it signs. No files; see `new_keys.py`."""

import ipaddress
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedft.errors import ConfigError

CA_DAYS = 3650


@dataclass(frozen=True)
class Certificate:
    """The facts of a server's TLS certificate that decide whether sites accept it."""

    path: Path
    names: tuple[str, ...]
    """DNS names and IP addresses for which the certificate is valid."""
    not_before: datetime
    not_after: datetime
    signed_by_ca: bool
    """Whether the certificate is signed by the authority in the ca.pem beside it."""

    def faults(self, host: str | None = None, now: datetime | None = None) -> list[str]:
        """The reasons why sites would refuse this certificate, a line with its remedy each; none if it is good.

        Args:
            host: DNS name or IP address under which sites reach the server; None leaves the names unchecked.
            now: the time to check validity at, with a zone; None is the machine's clock.
        """
        now, folder = now or datetime.now(UTC), shlex.quote(str(self.path.parent))
        found = []
        if not self.signed_by_ca:
            found.append(f"{self.path}: not signed by ca.pem beside it; `fedft keys renew {folder}`")
        if host is not None and not self._covers(host):
            names = ", ".join(self.names) or "no host"
            options = " ".join(f"--host {shlex.quote(name)}" for name in (*self.names, host))
            found.append(f"{self.path}: for {names}, not {host}; `fedft keys renew {folder} {options}`")
        if now > self.not_after:
            found.append(f"{self.path}: expired at {_said(self.not_after)}; `fedft keys renew {folder}`")
        if now < self.not_before:
            found.append(
                f"{self.path}: valid from {_said(self.not_before)}, it is {_said(now)}; set this machine's clock"
            )
        return found

    def _covers(self, host: str) -> bool:
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError:
            host = host.lower()
            return host in self.names or f"*.{host.partition('.')[2]}" in self.names
        return host in self.names


def facts(path: Path, found: x509.Certificate, authorities: Sequence[x509.Certificate]) -> Certificate:
    """The facts of the certificate `found`, read from `path`; one of `authorities` should have signed it."""
    try:
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(n.value) for n in alternatives if isinstance(n, x509.DNSName | x509.IPAddress))
    except (x509.ExtensionNotFound, ValueError):
        names = ()
    signed = any(_issued(found, ca) for ca in authorities)
    return Certificate(path, names, found.not_valid_before_utc, found.not_valid_after_utc, signed)


def _issued(found: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        found.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def subjects(hosts: Sequence[str]) -> list[x509.GeneralName]:
    """The names that a server's certificate gets: each of `hosts` once, then localhost, 127.0.0.1 and ::1.

    The machine itself is among them because the server's own processes connect to what it starts. Raises ConfigError
    for an entry that is neither a DNS name (`*.` in front stands for one label) nor an IP address, or if there is none.
    """
    label = r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?"  # with the underscore, which container networks use
    names: dict[x509.GeneralName, None] = {}
    for host in hosts:
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            last = host.rpartition(".")[2]
            if len(host) > 253 or last.isdecimal() or not re.fullmatch(rf"(\*\.)?({label}\.)*{label}", host.lower()):
                raise ConfigError(
                    f"--host {host!r}: wanted a DNS name or an IP address, without a scheme or port"
                ) from None
            name = x509.DNSName(host.lower())
        names[name] = None
    if not names:
        raise ConfigError("no host; wanted the DNS names or IP addresses under which the sites reach the server")
    own: list[x509.GeneralName] = [x509.DNSName("localhost")]
    own += [x509.IPAddress(ipaddress.ip_address(a)) for a in ("127.0.0.1", "::1")]
    return list(names | dict.fromkeys(own))


def authority(key: EllipticCurvePrivateKey) -> x509.Certificate:
    """The certificate of a new authority with this key: self-signed, valid for ten years, for signing servers only."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedft certificate authority")])
    until = datetime.now(UTC) + timedelta(days=CA_DAYS)
    ca = _builder(name, name, key, until).add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return ca.add_extension(_usage(key_cert_sign=True), critical=True).sign(key, hashes.SHA384())


def issue(
    ca: x509.Certificate,
    ca_key: EllipticCurvePrivateKey,
    key: EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    days: int,
) -> bytes:
    """A new server certificate in PEM, with all extensions that a strict verifier asks for (RFC 5280).

    Args:
        ca, ca_key: certificate and private key of the authority that signs.
        key: the server's private key.
        names: what sites may call the server, from `subjects`.
        days: from now, that the certificate is valid; its authority's end cuts that short.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedft server")])
    until = min(datetime.now(UTC) + timedelta(days=days), ca.not_valid_after_utc)
    leaf = _builder(subject, ca.subject, key, until)
    leaf = leaf.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    leaf = leaf.add_extension(_usage(digital_signature=True), critical=True)
    leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    leaf = leaf.add_extension(x509.SubjectAlternativeName(names), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return leaf.add_extension(issuer, critical=False).sign(ca_key, hashes.SHA384()).public_bytes(pem.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))  # a site's clock may be behind
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _said(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
