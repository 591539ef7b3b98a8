"""One site in TOML: the [[site]] table of a roster or of a card, and the `Site` that it says.

    [[site]]
    name = "clinic-1"
    signing = "Wm9v..."                       base64 of the 32 bytes of an Ed25519 public key
    node = '''-----BEGIN PUBLIC KEY-----...'''    ECDSA P-384, in PEM
    revoked = true                            this and the rest in a roster only; all may be left out
    not_before = 2027-01-01T00:00:00Z
    not_after = 2027-12-31T00:00:00Z
    max_examples = 20000
    old_signing = "...", old_node = "..."     keys that were replaced, which count until
    old_until = 2027-03-01T00:00:00Z

    proof = "..."                             in a card only: what the site's old key signs of the new ones

Files are read and written by `roster.py`.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import check
from fedft.errors import ConfigError
from fedft.security.key_files import tables_of
from fedft.security.private_keys import node_bytes
from fedft.security.sealed import Verifies, site_name

CARD_KEYS = ("name", "signing", "node")  # what a site says of itself; the rest is the server's operator's to say


@dataclass(frozen=True)
class Site:
    """One site: its name, its public keys, and when its messages count."""

    name: str
    signing: Ed25519PublicKey
    """The key that the site signs its messages with."""
    node: bytes
    """The site's ECDSA P-384 key as the transport registers it: PEM, SubjectPublicKeyInfo."""
    revoked: bool = False
    not_before: datetime | None = None
    not_after: datetime | None = None
    max_examples: int = 1_000_000
    """The most examples that one update of the site may claim."""
    old_signing: Ed25519PublicKey | None = None
    old_node: bytes | None = None
    """Keys that the site had before; None for none."""
    old_until: datetime | None = None
    """Until when these count as well."""
    proof: bytes = b""
    """Of a card: the signature by the site's old key, see `card_proofs`; b"" for none."""

    def nodes(self, now: datetime | None = None) -> tuple[bytes, ...]:
        """The node keys with which the site may come: its own, and its old one while that counts."""
        return (self.node, self.old_node) if self.old_node is not None and self._old(now) else (self.node,)

    def key(self, now: datetime | None = None) -> Verifies:
        """What the site's messages are verified with: its key, or either of the two while the old one counts."""
        return _Either(self.signing, self.old_signing) if self.old_signing and self._old(now) else self.signing

    def _old(self, now: datetime | None) -> bool:
        return self.old_until is not None and (now or datetime.now(UTC)) < self.old_until

    def state(self, now: datetime | None = None) -> str:
        """Whether the site's messages count: "enrolled" if they do, else "revoked", "expired" or "not yet valid".

        `now` is a time with a zone; None is the machine's clock.
        """
        now = now or datetime.now(UTC)
        if self.revoked:
            return "revoked"
        if self.not_after is not None and now > self.not_after:
            return "expired"
        return "not yet valid" if self.not_before is not None and now < self.not_before else "enrolled"

    def fingerprint(self) -> str:
        """32 hexadecimal digits in groups of four, for two operators to compare by telephone.

        They are the beginning of a SHA-256 over the site's name and public keys.
        """
        return grouped(
            hashlib.sha256(self.name.encode() + b"\0" + self.signing.public_bytes_raw() + self.node).hexdigest()
        )


@dataclass(frozen=True)
class _Either:
    """Two keys, either of which will do."""

    first: Ed25519PublicKey
    second: Ed25519PublicKey

    def verify(self, signature: bytes, data: bytes) -> None:
        try:
            self.first.verify(signature, data)
        except InvalidSignature:
            self.second.verify(signature, data)


def grouped(digits: str) -> str:
    """The first 32 of hexadecimal digits in groups of four, for people to read to each other."""
    return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def site_tables(text: str, path: Path) -> list[dict[str, Any]]:
    """The [[site]] tables of a text, unchecked, in its order.

    Raises ConfigError, which names the file `path`, for what is not TOML or has anything but such tables.
    """
    found = tables_of(text, path)
    for name in found:
        if name != "site":
            raise ConfigError(
                f"{path}: no table {name[:64]!r} here{check.nearest(name, ('site',)) or '; wanted [[site]]'}"
            )
    tables = found.get("site", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(f"{path}: 'site' is not a list of tables; wanted [[site]]")
    return tables


def site_of_card(text: str, card: Path) -> Site:
    """The site of a card's text; ConfigError, which names the file `card`, for anything but one table of CARD_KEYS."""
    tables = site_tables(text, card)
    if len(tables) != 1:
        raise ConfigError(f"{card}: {len(tables)} [[site]] tables, wanted one: a card is of one site")
    if more := sorted((set(tables[0]) & set(_KEYS)) - {*CARD_KEYS, "proof"}):
        raise ConfigError(f"{card}: [[site]] has {more[0]!r}, which the server's roster says and no site of itself")
    return site_of(tables[0], f"{card}: [[site]]")


def card_text(name: str, signing: Ed25519PublicKey, node: bytes, proof: bytes = b"") -> str:
    """The text of a card: one [[site]] table with a site's name and public keys, and nothing else.

    `node` is the site's ECDSA P-384 key as the transport registers it: PEM, SubjectPublicKeyInfo. `proof` is that of
    `card_proofs.proof_of`, b"" for none.
    """
    site = {"name": name, "signing": encoded(signing), "node": node.decode()}
    if proof:
        site["proof"] = base64.b64encode(proof).decode()
    return tomli_w.dumps({"site": [site]}, multiline_strings=True)


def encoded(signing: Ed25519PublicKey) -> str:
    """A signing key as a table has it: base64 of its 32 bytes."""
    return base64.b64encode(signing.public_bytes_raw()).decode()


def site_of(table: Mapping[str, Any], where: str) -> Site:
    """The site of a [[site]] table. Raises ConfigError, which begins with `where` and names the key."""
    for key in table:
        if key not in _KEYS:
            raise ConfigError(f"{where} has no {key[:64]!r}{check.nearest(key, _KEYS)}")
    for key in CARD_KEYS:
        if key not in table:
            raise ConfigError(f"{where} needs {key!r}")
    values = {}
    for key, value in table.items():
        try:
            values[key] = _KEYS[key](value)
        except ValueError as e:
            raise ConfigError(f"{where} {key}: {e}") from e
    site = Site(**values)
    if site.not_before and site.not_after and site.not_before >= site.not_after:
        raise ConfigError(f"{where} not_after: {site.not_after}, wanted a time after not_before, {site.not_before}")
    if len({site.old_signing is None, site.old_node is None, site.old_until is None}) > 1:
        raise ConfigError(f"{where} has old_signing, old_node and old_until all three, or none of them")
    return site


def _signing(value: object) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(check.typed(str, value, "it"), validate=True))
    except ValueError as e:
        raise ValueError("not an Ed25519 public key; wanted base64 of its 32 bytes") from e


def _node(value: object) -> bytes:
    try:
        key = pem.load_pem_public_key(check.typed(str, value, "it").encode())
    except (ValueError, UnsupportedAlgorithm) as e:
        raise ValueError("not a public key in PEM") from e
    if not (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise ValueError("not an ECDSA P-384 public key")
    return node_bytes(key)


def _proof(value: object) -> bytes:
    try:
        proof = base64.b64decode(check.typed(str, value, "it"), validate=True)
    except ValueError:
        proof = b""
    if len(proof) != 64:
        raise ValueError("not the 64 bytes of a signature in base64")
    return proof


def _time(value: object) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    said = " ".join(str(value).split())[: check.QUOTED]
    raise ValueError(f"{said}, wanted a date and time with a zone, such as 2027-01-31T00:00:00Z")


def _examples(value: object) -> int:
    check.at_least(1, max_examples=check.typed(int, value, "it"))
    return check.typed(int, value, "it")


_KEYS: dict[str, Callable[[object], Any]] = {
    "name": lambda value: site_name(check.typed(str, value, "it")),
    "signing": _signing,
    "node": _node,
    "revoked": lambda value: check.typed(bool, value, "it"),
    "not_before": _time,
    "not_after": _time,
    "max_examples": _examples,
    "old_signing": _signing,
    "old_node": _node,
    "old_until": _time,
    "proof": _proof,
}
