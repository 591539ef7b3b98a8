"""TLS of both ends: 1.3 and nothing older, the server by its authority, the site by the key that the roster names.

A site's certificate says nothing: it is made anew at each start, signed by a key that everybody knows, and has no end
that a clock could miss. In the handshake the site proves that it holds the private key of the certificate, and that
key is one of the roster's or none. (Python's ssl asks for a chain to an authority, and lets nobody look at a
certificate before that; hence an authority whose signature is worth nothing.)
"""

import ssl
import tempfile
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedft.errors import ConfigError
from fedft.security.private_keys import load_ecdsa, node_bytes

PROTOCOL = "fedft/1"
_ALWAYS = datetime(1950, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)


def for_server(cert: Path, key: Path) -> ssl.SSLContext:
    """The server's side: its certificate, and a certificate asked of every site. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as e:
        raise ConfigError(f"{cert}, {key}: not a certificate and its private key: {e}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=_everybody()[1].public_bytes(pem.Encoding.PEM).decode("ascii"))
    context.set_alpn_protocols([PROTOCOL])
    context.num_tickets = 0  # nobody resumes: each connection proves its key
    return context


def for_site(ca: bytes, key: Path | None = None, *, check_host: bool = True) -> ssl.SSLContext:
    """A site's side.

    Args:
        ca: PEM certificates to trust, and no others.
        key: file of the site's node key; None connects as nobody, and the server ends that.
        check_host: whether the server's certificate must be for the host that it was reached under.
    Raises:
        ValueError, which ssl.SSLError is not: `ca` is no text. ssl.SSLError, OSError: it holds no certificates.
        KeyFault: the key cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = check_host
    context.load_verify_locations(cadata=ca.decode("ascii"))
    context.set_alpn_protocols([PROTOCOL])
    if key is not None:
        with tempfile.NamedTemporaryFile(suffix=".pem") as cert:  # nothing of it is secret
            cert.write(_certificate(load_ecdsa(key).public_key()))
            cert.flush()
            context.load_cert_chain(cert.name, key)
    return context


def key_of(certificate: bytes | None) -> bytes | None:
    """The public key of a peer's certificate (DER) as the roster has it; None for one of a kind that no site has."""
    try:
        key = x509.load_der_x509_certificate(certificate or b"").public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None
    return node_bytes(key) if isinstance(key, ec.EllipticCurvePublicKey) else None


@cache
def _everybody() -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The authority whose private key is known to all, and its certificate."""
    key = ec.derive_private_key(0xFED, ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedft: signed by everybody")])
    builder = _builder(name, name, key.public_key(), 1)
    ca = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return key, ca.sign(key, hashes.SHA256())


def _certificate(key: ec.EllipticCurvePublicKey) -> bytes:
    authority, ca = _everybody()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedft site")])
    builder = _builder(name, ca.subject, key, x509.random_serial_number())
    leaf = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    return leaf.sign(authority, hashes.SHA256()).public_bytes(pem.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, serial: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(serial)
    builder = builder.not_valid_before(_ALWAYS[0]).not_valid_after(_ALWAYS[1])
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
