"""The proof on a card that a site's new keys are the same site's: a signature by its old key.

signed: b"fedft card 1\\0", SHA-256 of the name, 32 bytes of the new signing key, the new node key in PEM
"""

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft.security.site_table import Site

_DOMAIN = b"fedft card 1\0"  # a signature of this key over anything else is never one of ours


def proof_of(site: Site, old: Ed25519PrivateKey) -> bytes:
    """What a site's old key signs so that `site`, with its new keys, may take its place: 64 bytes."""
    return old.sign(_signed(site))


def is_proven(site: Site, old: Ed25519PublicKey) -> bool:
    """Whether the card that says `site` was signed by the key `old`."""
    try:
        old.verify(site.proof, _signed(site))
    except InvalidSignature:
        return False
    return True


def _signed(site: Site) -> bytes:
    name = hashlib.sha256(site.name.encode()).digest()
    return _DOMAIN + name + site.signing.public_bytes_raw() + site.node
