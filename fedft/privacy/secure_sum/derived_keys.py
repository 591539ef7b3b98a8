"""Every key of a block, from its secrets: one for each use, so that none is ever used twice.

    X25519 private = HKDF(31 random bytes, no salt, "x25519")
    self_i         = HKDF(b_i, ctx, "self" | u8 slot)
    pair_ij        = HKDF(ECDH(a_i, A_j), ctx, "mask" | u8 slot)                       the same at i and at j
    box i to j     = HKDF(ECDH(share keys), ctx, "share" | u16 i | u16 j)
    boxed          = AES-256-GCM(box i to j, zero nonce, plain text, associated data ctx | u16 i | u16 j)

HKDF is with SHA-256 and gives 32 bytes; the salt ctx binds keys to one block of one run with one roster. A box key has
one plain text for ever: it is fixed before anything is sent.
"""

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_NONCE = bytes(12)
_P = 2**255 - 19
# The points of Curve25519 and its twist whose order divides 8 (cr.yp.to/ecdh.html, "How do I validate public keys?").
_SMALL_ORDER = {
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    _P - 1,
}
TAG_BYTES = 16
"""What a box is longer than its plain text."""


def derived(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256: 32 bytes of a secret for the use that `info` names."""
    return HKDF(SHA256(), 32, salt or None, info).derive(secret)


def exchange_key(secret: bytes) -> X25519PrivateKey:
    """The private key of a secret of 31 bytes: a slot's `a`, or that of a site's boxes."""
    return X25519PrivateKey.from_private_bytes(derived(secret, b"", b"x25519"))


def public(secret: bytes) -> bytes:
    """The public key, 32 raw bytes, that belongs to a secret of 31."""
    return exchange_key(secret).public_key().public_bytes_raw()


def weak(other: bytes) -> bool:
    """Whether a public key, 32 bytes, is of small order: what anybody agrees on with it is known to all.

    >>> weak(bytes(32)), weak(bytes(range(32)))
    (True, False)
    """
    return (int.from_bytes(other, "little") & (2**255 - 1)) % _P in _SMALL_ORDER


def agreed(key: X25519PrivateKey, other: bytes) -> bytes:
    """What two sites both know, 32 bytes, from the private key of one and the public one, not `weak`, of the other."""
    return key.exchange(X25519PublicKey.from_public_bytes(other))


def self_key(b: bytes, ctx: bytes, slot: int) -> bytes:
    """The key of a site's own mask in a slot, from its secret `b`."""
    return derived(b, ctx, b"self" + bytes((slot,)))


def mask_key(shared: bytes, ctx: bytes, slot: int) -> bytes:
    """The key of the mask that two sites share in a slot, from what their keys of the slot have `agreed`."""
    return derived(shared, ctx, b"mask" + bytes((slot,)))


def box_key(shared: bytes, ctx: bytes, sender: int, receiver: int) -> bytes:
    """The key of one site's box for another, from what their share keys have `agreed`; indices from 1."""
    return derived(shared, ctx, b"share" + struct.pack("<HH", sender, receiver))


def boxed(shared: bytes, ctx: bytes, sender: int, receiver: int, plain: bytes) -> bytes:
    """`plain` so that only the receiver reads it, TAG_BYTES longer."""
    key, about = box_key(shared, ctx, sender, receiver), ctx + struct.pack("<HH", sender, receiver)
    return AESGCM(key).encrypt(_NONCE, plain, about)


def unboxed(shared: bytes, ctx: bytes, sender: int, receiver: int, box: bytes) -> bytes | None:
    """What `boxed` was given; None for any other bytes."""
    key, about = box_key(shared, ctx, sender, receiver), ctx + struct.pack("<HH", sender, receiver)
    try:
        return AESGCM(key).decrypt(_NONCE, box, about)
    except InvalidTag:
        return None
