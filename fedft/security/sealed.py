"""Sealed messages: bytes signed by the one who sends them, and bound to what they are about.

    data = seal(Kind.ANSWER, About(run, round, attempt, "clinic-1", plan), payload, key)
    open_sealed(data, roster.key_of)        Opened(kind, about, payload), or RejectedUpdate

The network and the transport may read, change, delay and repeat messages, and attach any name to them; an opened
message is still exactly what the holder of the key sent, for this run, round, attempt, site and plan. Nothing here is
secret (TLS sees to that), and nothing stops a repetition: whoever opens decides what is new.

The format, little endian, nothing between the fields:

    offset  bytes
         0      4   magic "FDSE"
         4      2   version of the seal, unsigned: 1
         6      1   kind: 1 job, 2 train, 3 evaluate, 4 status, 5 fetch, 6 secagg; 11 answer, 12 refusal, 13 progress
         7      1   n, bytes of the site's name: 1 to 64
         8      8   run
        16      4   round, unsigned
        20      4   attempt, unsigned
        24     32   plan digest, SHA-256
        56     64   Ed25519 signature of: b"fedft sealed 1\\0", bytes 0 to 55, the site's name, SHA-256 of the payload
       120     64   the site's name, UTF-8, then zeros
       184          payload, to the end

What is signed has no second reading: all its parts but the name have one length, and the name's stands before it. The
payload always begins at the same place, so that what many sites are sent is equal but for its beginning: a transport
that cuts messages into pieces and names them by content then holds the rest once.

RejectedUpdate carries one of

    bad_magic        not a sealed message
    version          one that belongs to no protocol of `fedft.wire.versions`
    malformed        shorter than its own fields, an unknown kind, a name that is none
    bad_signature    not sealed by this site's key, or altered since
    unknown_client   from `key_of`: no key for this name
    revoked          from `key_of`: the key no longer counts, or not yet
"""

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.errors import RejectedUpdate
from fedft.wire import versions

MAGIC = b"FDSE"
MAX_NAME_BYTES = 64
_DOMAIN = b"fedft sealed 1\0"  # a signature of this key over anything else is never one of ours
_FIELDS = struct.Struct("<4sHBB8sII32s")
_SIGNATURE_BYTES = 64
_SITE = _FIELDS.size + _SIGNATURE_BYTES  # where the name begins
OVERHEAD = _SITE + MAX_NAME_BYTES
"""Bytes that `seal` adds to a payload."""


class Kind(IntEnum):
    """The kinds of sealed messages. Below 10: from the server to a site; from 10 on: from a site to the server."""

    JOB = 1
    TRAIN = 2
    EVALUATE = 3
    STATUS = 4
    FETCH = 5
    SECAGG = 6
    ANSWER = 11
    REFUSAL = 12
    PROGRESS = 13


@dataclass(frozen=True)
class About:
    """The request that a message belongs to: what its signature binds beside kind and payload.

    Raises ValueError for a field that the format cannot hold.
    """

    run: str
    """The run's id: 16 lower-case hexadecimal digits."""
    round: int
    """Number of the round, from 0, below 2^32."""
    attempt: int
    """Number of the attempt at the round, from 0, below 2^32."""
    site: str
    """Name of the site that the message goes to (from the server) or comes from; see `site_name`."""
    plan: bytes
    """SHA-256 of the server's payload that this message carries, asks about or answers."""

    def __post_init__(self) -> None:
        if len(self.run) != 16 or not set(self.run) <= set("0123456789abcdef"):
            raise ValueError(f"expected run to be 16 lower-case hexadecimal digits, got {self.run!r}")
        for name, value in (("round", self.round), ("attempt", self.attempt)):
            if type(value) is not int or not 0 <= value < 2**32:
                raise ValueError(f"expected {name} to be an integer from 0 to 2^32 - 1, got {value!r}")
        site_name(self.site)
        if not isinstance(self.plan, bytes) or len(self.plan) != 32:
            raise ValueError(f"expected plan to be the 32 bytes of a SHA-256, got {self.plan!r}")


@dataclass(frozen=True)
class Opened:
    """The content of a sealed message whose signature holds."""

    kind: Kind
    about: About
    payload: bytes
    digest: bytes
    """SHA-256 of the payload."""
    version: int
    """Version of the seal, in which the answer is to be sealed, too."""


def site_name(name: str) -> str:
    """`name` itself if a site may be called so, else ValueError.

    1 to 64 bytes of UTF-8, printable, no slash or backslash, no dot in front, no space at either end: names are shown
    in logs and tables, and files are named after them.
    """
    size = len(name.encode(errors="surrogatepass"))
    if not 1 <= size <= MAX_NAME_BYTES:
        raise ValueError(f"expected a site's name of 1 to {MAX_NAME_BYTES} bytes, got {size}")
    if not name.isprintable() or set(name) & set("/\\") or name[0] == "." or name != name.strip():
        raise ValueError(
            f"expected a site's name of printable characters, without slashes, a dot in front or spaces around it, "
            f"got {name!a}"
        )
    return name


def digest(payload: bytes) -> bytes:
    """SHA-256 of a payload, 32 bytes: `About.plan` of the messages about it."""
    return hashlib.sha256(payload).digest()


def seal(
    kind: Kind,
    about: About,
    payload: bytes,
    key: Ed25519PrivateKey,
    version: int | None = None,
    sha256: bytes | None = None,
) -> bytes:
    """The sealed message of `payload`, signed with `key`: `head`, and then the payload, which is copied once."""
    return head(kind, about, payload, key, sha256, version) + payload


def head(
    kind: Kind,
    about: About,
    payload: bytes,
    key: Ed25519PrivateKey,
    sha256: bytes | None = None,
    version: int | None = None,
) -> bytes:
    """What stands before `payload` in its sealed message, signed with `key`: OVERHEAD bytes.

    `sha256` is the payload's digest, to be given by a caller that has it; None computes it. `version` is that of the
    seal; None is the newest.
    """
    version = version or versions.SEALS[versions.newest()]
    site = about.site.encode()
    fields = _FIELDS.pack(
        MAGIC, version, Kind(kind), len(site), bytes.fromhex(about.run), about.round, about.attempt, about.plan
    )
    signature = key.sign(_signed(fields, site, sha256 or digest(payload)))
    return b"".join((fields, signature, site.ljust(MAX_NAME_BYTES, b"\0")))


class Verifies(Protocol):
    """A public key, or several of which any will do."""

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raise InvalidSignature unless `signature` is by the private key, over `data`."""


def open_sealed(data: bytes, key_of: Callable[[str], Verifies]) -> Opened:
    """The content of a sealed message, once its signature is found to be by the site that it names.

    Args:
        data: bytes from the network, of any kind and length; the payload in them is copied once.
        key_of: gives the public key for a site's name, or raises RejectedUpdate (`Roster.key_of`). A site, which
            expects messages to itself alone, gives the server's key for its own name and refuses all others.
    Raises:
        RejectedUpdate: with a code of the module's table. Whatever the bytes, nothing else is raised.
    """
    if data[:4] != MAGIC:
        raise RejectedUpdate("bad_magic", f"expected a sealed message beginning {MAGIC!r}, got {bytes(data[:4])!r}")
    if len(data) < 6:
        raise RejectedUpdate("malformed", f"sealed message of {len(data)} bytes, shorter than its fields")
    if (version := int.from_bytes(data[4:6], "little")) not in (known := sorted({*versions.SEALS.values()})):
        which, read = ("this side" if version > known[-1] else "the peer"), " and ".join(map(str, known))
        raise RejectedUpdate("version", f"a seal of version {version}, here {read} is read: update {which}")
    if len(data) < OVERHEAD:
        raise RejectedUpdate("malformed", f"sealed message of {len(data)} bytes, shorter than its fields")
    view = memoryview(data)
    _, _, number, size, run, round, attempt, plan = _FIELDS.unpack_from(view)
    name, payload = bytes(view[_SITE:OVERHEAD]), view[OVERHEAD:]
    site = name[:size]
    try:
        if name[size:].strip(b"\0") or len(name[size:]) != MAX_NAME_BYTES - size:
            raise ValueError(f"expected {size} bytes of the site's name, then zeros up to {MAX_NAME_BYTES}")
        kind, about = Kind(number), About(run.hex(), round, attempt, site.decode(), plan)
    except ValueError as e:  # UnicodeDecodeError is one
        raise RejectedUpdate("malformed", f"malformed sealed message: {e}") from e
    sha256 = hashlib.sha256(payload).digest()
    try:
        signature = bytes(view[_FIELDS.size : _SITE])
        key_of(about.site).verify(signature, _signed(view[: _FIELDS.size], site, sha256))
    except InvalidSignature as e:
        raise RejectedUpdate(
            "bad_signature", f"message in the name of {about.site!r}: altered, or not signed by its key"
        ) from e
    return Opened(kind, about, bytes(payload), sha256, version)


def _signed(fields: bytes | memoryview, site: bytes, sha256: bytes) -> bytes:
    return b"".join((_DOMAIN, fields, site, sha256))
