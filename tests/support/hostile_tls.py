"""A TLS client that does what no honest one does, and what Python's `ssl` cannot: OpenSSL called directly."""

import ctypes
import re
import socket
import ssl
import struct
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedft.carriers.stream import tls
from fedft.security.private_keys import load_ecdsa

_P, _I, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
_CALLS = {
    "TLS_client_method": (_P, []),
    "SSL_CTX_new": (_P, [_P]),
    "SSL_CTX_free": (None, [_P]),
    "SSL_CTX_use_certificate_chain_file": (_I, [_P, _S]),
    "SSL_CTX_use_PrivateKey_file": (_I, [_P, _S, _I]),
    "SSL_CTX_set_alpn_protos": (_I, [_P, _S, ctypes.c_uint]),
    "SSL_new": (_P, [_P]),
    "SSL_free": (None, [_P]),
    "SSL_set_fd": (_I, [_P, _I]),
    "SSL_connect": (_I, [_P]),
    "SSL_do_handshake": (_I, [_P]),
    "SSL_key_update": (_I, [_P, _I]),
    "SSL_write": (_I, [_P, _S, _I]),
}


def openssl() -> ctypes.CDLL:
    """The OpenSSL that Python's `ssl` uses; the test is skipped where it is linked in another way."""
    assert ssl.OPENSSL_VERSION_INFO >= (1, 1, 1)
    try:
        maps = Path("/proc/self/maps").read_text()
        found = re.search(r"\S*/libssl[^/\s]*$", maps, re.MULTILINE)
        library = ctypes.CDLL(found[0]) if found else pytest.skip("OpenSSL is not a library of its own here")
    except OSError as e:
        pytest.skip(f"no OpenSSL to call here: {e}")
    for name, (result, arguments) in _CALLS.items():
        getattr(library, name).restype, getattr(library, name).argtypes = result, arguments
    return library


class HostileTls:
    """A connection to a port of loopback behind its handshake, with the key in a file; ends with its block.

    What is said waits 0.2 s for the other side to read, and fails then.
    """

    def __init__(self, port: int, key: Path) -> None:
        self._ssl = openssl()
        with tempfile.NamedTemporaryFile(suffix=".pem") as file:
            file.write(tls._certificate(load_ecdsa(key).public_key()))
            file.flush()
            self._context = self._ssl.SSL_CTX_new(self._ssl.TLS_client_method())
            assert self._ssl.SSL_CTX_use_certificate_chain_file(self._context, file.name.encode()) == 1
        assert self._ssl.SSL_CTX_use_PrivateKey_file(self._context, str(key).encode(), 1) == 1
        name = tls.PROTOCOL.encode()
        self._ssl.SSL_CTX_set_alpn_protos(self._context, bytes([len(name)]) + name, len(name) + 1)
        self._end = self._ssl.SSL_new(self._context)
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 0, 200_000))
        self._ssl.SSL_set_fd(self._end, self._sock.fileno())
        if self._ssl.SSL_connect(self._end) != 1:
            raise ConnectionError("no handshake")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._sock.close()
        self._ssl.SSL_free(self._end)
        self._ssl.SSL_CTX_free(self._context)

    def say(self, data: bytes) -> bool:
        """Send bytes in one record; whether that could be done."""
        return bool(self._ssl.SSL_write(self._end, data, len(data)) == len(data))

    def change_keys(self, both: bool) -> bool:
        """Say KeyUpdate, and ask for one back if `both`; whether that could be done."""
        self._ssl.SSL_key_update(self._end, int(both))
        return bool(self._ssl.SSL_do_handshake(self._end) == 1)


def client_hello(port: int, ca: bytes, protocols: list[str]) -> bytes:
    """The first bytes of a handshake with these protocols offered; they do for any number of connections."""
    context = tls.for_site(ca, check_host=False)
    context.set_alpn_protocols(protocols)
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


def long_chain(folder: Path, key: Path, size: int) -> Path:
    """A file of a site's certificate, and behind it certificates that nobody asked for, some `size` bytes of them."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "long")])
    signer = ec.generate_private_key(ec.SECP256R1())
    more = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(signer.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
        .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(size)), critical=False)
        .sign(signer, hashes.SHA256())
    )
    file = folder / "long.pem"
    own = tls._certificate(load_ecdsa(key).public_key())
    file.write_bytes(own + more.public_bytes(pem.Encoding.PEM))
    return file
