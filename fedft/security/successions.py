"""A succession: one server key names the next, so that sites which trust the first come to trust the second.

It stands in front of every message of a server whose keys were replaced, and opens nothing by itself: a site that holds
the old key takes the new one from it, another lets it be. The format, little endian, nothing between the fields:

    offset  bytes
         0      4   magic "FDSU"
         4      2   form, unsigned: 1
         6      2   length of the whole, unsigned
         8      8   until when it is accepted, unsigned, seconds since 1970, UTC
        16     32   Ed25519 public key that signs it
        48     32   Ed25519 public key that takes its place
        80     64   signature by the first of: b"fedft succession 1\0", bytes 0 to 79, then from 144 to the end
       144          the next authority of the server's TLS certificate, in PEM

Whoever has the old private key can make one; see `DEPLOYMENT.md` for what to do about a key that leaked.
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MAGIC, FORM = b"FDSU", 1
MAX_BYTES = 2**14  # an authority in PEM takes some 800
_DOMAIN = b"fedft succession 1\0"  # a signature of this key over anything else is never one of ours
_FIELDS = struct.Struct("<4sHHQ32s32s")
_SIGNATURE_BYTES = 64
_HEAD = _FIELDS.size + _SIGNATURE_BYTES


@dataclass(frozen=True)
class Succession:
    """A succession whose signature holds."""

    old: bytes
    """The 32 bytes of the key that signed it."""
    new: bytes
    """The 32 bytes of the key that it names."""
    until: datetime
    """When a site that has not heard of it accepts it no longer."""
    authority: bytes
    """PEM of the server's next TLS authority."""


def signed(key: Ed25519PrivateKey, new: Ed25519PublicKey, until: datetime, authority: bytes) -> bytes:
    """The bytes of a succession from `key` to `new`; `authority` is a certificate in PEM."""
    size = _HEAD + len(authority)
    assert size <= MAX_BYTES
    old = key.public_key().public_bytes_raw()
    fields = _FIELDS.pack(MAGIC, FORM, size, int(until.timestamp()), old, new.public_bytes_raw())
    return fields + key.sign(_DOMAIN + fields + authority) + authority


def apart(data: bytes) -> tuple[bytes, bytes]:
    """(the succession in front of a message, or b"" if there is none; the message). Nothing is checked."""
    if data[:4] != MAGIC or len(data) < _HEAD:
        return b"", data
    size = int.from_bytes(data[6:8], "little")
    return data[:size], data[size:]


def opened(data: bytes) -> Succession:
    """The succession in exactly these bytes. Raises ValueError for any others."""
    if not _HEAD < len(data) <= MAX_BYTES:
        raise ValueError(f"expected a succession of {_HEAD + 1} to {MAX_BYTES} bytes, got {len(data)}")
    magic, form, size, until, old, new = _FIELDS.unpack_from(data)
    if (magic, form, size) != (MAGIC, FORM, len(data)):
        raise ValueError(f"not a succession of form {FORM}")
    authority = data[_HEAD:]
    try:
        key, _ = Ed25519PublicKey.from_public_bytes(old), Ed25519PublicKey.from_public_bytes(new)
        key.verify(data[_FIELDS.size : _HEAD], _DOMAIN + data[: _FIELDS.size] + authority)
        x509.load_pem_x509_certificate(authority)
        ends = datetime.fromtimestamp(until, UTC)
    except (InvalidSignature, ValueError, x509.InvalidVersion, OverflowError, OSError) as e:
        raise ValueError("a succession that is not signed by the key which it names, or was altered") from e
    return Succession(old, new, ends, authority)
