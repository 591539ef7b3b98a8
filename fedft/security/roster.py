"""Keys and certificates of a deployment, and the roster of sites that count.

    server's folder    ca.key, ca.pem           its own certificate authority: ECDSA P-384, ten years
                       server.key, server.pem   TLS, for the names and addresses under which sites reach it
                       signing.key, server.pub  Ed25519: what the server sends is sealed with it
                       roster.toml              the sites, one [[site]] table each
    site's folder      signing.key              Ed25519: what the site sends is sealed with it
                       node.key                 ECDSA P-384: the transport's login
                       NAME.card.toml           the public halves, for the server's operator
                       ca.pem, server.pub       copied from the server's folder

Private keys are PKCS #8 in PEM, unencrypted, mode 0600; they never leave their folder, and no message shows them. All
keys come from the operating system's generator. A private key that cannot be used is a KeyFault, all else a user may
have wrong a ConfigError, one line each.
"""

import base64
import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import check
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security.key_files import PUBLIC, read_text, write_new
from fedft.security.private_keys import load_public, node_bytes
from fedft.security.sealed import site_name

MAX_CARD_BYTES = 2**14  # a card comes from somebody else and takes 400 bytes
CARD_KEYS = ("name", "signing", "node")  # what a site says of itself; the rest is the server's operator's to say
ROSTER = """\
# The sites whose messages count. `fedft keys enrol` adds a [[site]] table, `fedft keys revoke` sets its `revoked`;
# these keys may be added by hand:
#   not_before, not_after   when the site counts, such as 2027-01-31T00:00:00Z
#   max_examples            the most examples one update of the site may claim (left out: 1000000)
"""


@dataclass(frozen=True)
class Member:
    """One site of the roster: its name, its public keys and when its messages count."""

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
        h = hashlib.sha256(self.name.encode() + b"\0" + self.signing.public_bytes_raw() + self.node).hexdigest()
        return " ".join(h[i : i + 4] for i in range(0, 32, 4))


@dataclass(frozen=True)
class Roster:
    """The sites of a roster file by name, in the order of the file; also those whose messages do not count (now)."""

    members: Mapping[str, Member]

    def key_of(self, name: str) -> Ed25519PublicKey:
        """The public key that site `name` signs its messages with.

        Raises RejectedUpdate with code `unknown_client` for a name that is not in the roster, and `revoked` for a site
        that is revoked, expired or not yet valid.
        """
        member = self.members.get(name)
        if member is None:
            raise RejectedUpdate("unknown_client", f"no site {name!r} in the roster")
        if (state := member.state()) != "enrolled":
            raise RejectedUpdate("revoked", f"the key of site {name!r} does not count: {state}")
        return member.signing


def load_roster(path: Path) -> Roster:
    """The roster in the file `path`: TOML with a [[site]] table for each site.

    Raises ConfigError naming file, table and key for whatever is wrong, and for a name or key that two sites have.
    """
    return _roster(read_text(path, "`fedft keys server` makes one"), path)


def read_card(card: Path) -> Member:
    """The site that the card file `card` is of, not yet in any roster.

    Raises ConfigError for anything but one [[site]] table with a name, two public keys and nothing else.
    """
    tables = _tables(read_text(card, "a site's operator makes one with `fedft keys site`", MAX_CARD_BYTES), card)
    if len(tables) != 1:
        raise ConfigError(f"{card}: {len(tables)} [[site]] tables, wanted one: a card is of one site")
    if more := sorted((set(tables[0]) & set(_SITE)) - set(CARD_KEYS)):
        raise ConfigError(f"{card}: [[site]] has {more[0]!r}, which the server's roster says and no site of itself")
    return _member(tables[0], f"{card}: [[site]]")


def enrol(roster: Path, card: Path) -> Member:
    """Add the site of the card file `card` to the roster file `roster`; returns the site.

    The roster's text so far stays as it is, and a card that is enrolled already changes nothing. Raises ConfigError for
    a file that is no card, for a name or key that another site (or the server) has, and for a revoked site.
    """
    member = read_card(card)
    text = read_text(roster, "`fedft keys server` makes one")
    known = _roster(text, roster).members.get(member.name)
    if known is not None:
        if known.fingerprint() != member.fingerprint():
            raise ConfigError(
                f"{card}: {roster} has a site {member.name!r} with other keys; delete its table there to replace them"
            )
        if known.revoked:
            raise ConfigError(f"{card}: site {member.name!r} is revoked; delete `revoked` in {roster} to take it back")
        return known
    server = roster.with_name("server.pub")
    if server.exists() and load_public(server) == member.signing:
        raise ConfigError(f"{card}: [[site]] signing is the server's own key")
    text = text.rstrip() + "\n\n" + _card(member.name, member.signing, member.node)
    _roster(text, roster)  # a key that another site has is refused before anything is written
    write_new(roster, text.encode(), PUBLIC)
    return member


def revoke(roster: Path, name: str) -> None:
    """Write `revoked = true` into the table of site `name` in the file `roster`; comments and all else stay.

    A site that is revoked already stays so. Raises ConfigError if there is no such site.
    """
    text = read_text(roster, "`fedft keys server` makes one")
    members = _roster(text, roster).members
    if name not in members:
        raise ConfigError(f"{roster}: no site {name!r}{check.nearest(name, members)}")
    if members[name].revoked:
        return
    wanted = [dict(t, revoked=True) if t["name"] == name else t for t in _tables(text, roster)]
    # put under the table's head, so that the operator's own lines survive; written anew if that is not what comes out
    heads = list(re.finditer(r"^[ \t]*\[\[[ \t]*site[ \t]*\]\].*$", text, re.MULTILINE))
    index = list(members).index(name)
    end = heads[index].end() if len(heads) == len(members) else 0
    edited = text[:end] + "\nrevoked = true" + text[end:]
    try:
        same = tomllib.loads(edited) == {"site": wanted}
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        edited = ROSTER + "\n" + tomli_w.dumps({"site": wanted}, multiline_strings=True)
    write_new(roster, edited.encode(), PUBLIC)


def _roster(text: str, path: Path) -> Roster:
    members: dict[str, Member] = {}
    owners: dict[bytes, str] = {}
    for i, table in enumerate(_tables(text, path), 1):
        where = f"{path}: [[site]] {i}"
        member = _member(table, where)
        if member.name in members:
            raise ConfigError(f"{where} name: a second site {member.name!r}")
        for key, value in (("signing", member.signing.public_bytes_raw()), ("node", member.node)):
            if value in owners:
                raise ConfigError(f"{where} {key}: the key of {member.name!r} is also that of {owners[value]!r}")
            owners[value] = member.name
        members[member.name] = member
    return Roster(members)


def _tables(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as e:
        raise ConfigError(f"{path}: not valid TOML: {' '.join(str(e).split())}") from e
    for name in found:
        if name != "site":
            raise ConfigError(
                f"{path}: no table {name[:64]!r} here{check.nearest(name, ('site',)) or '; wanted [[site]]'}"
            )
    tables = found.get("site", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ConfigError(f"{path}: 'site' is not a list of tables; wanted [[site]]")
    return tables


def _member(table: Mapping[str, Any], where: str) -> Member:
    for key in table:
        if key not in _SITE:
            raise ConfigError(f"{where} has no {key[:64]!r}{check.nearest(key, _SITE)}")
    for key in CARD_KEYS:
        if key not in table:
            raise ConfigError(f"{where} needs {key!r}")
    values = {}
    for key, value in table.items():
        try:
            values[key] = _SITE[key](value)
        except ValueError as e:
            raise ConfigError(f"{where} {key}: {e}") from e
    member = Member(**values)
    if member.not_before and member.not_after and member.not_before >= member.not_after:
        raise ConfigError(f"{where} not_after: {member.not_after}, wanted a time after not_before, {member.not_before}")
    return member


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


def _time(value: object) -> datetime:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    raise ValueError(f"{value}, wanted a date and time with a zone, such as 2027-01-31T00:00:00Z")


def _examples(value: object) -> int:
    check.at_least(1, max_examples=check.typed(int, value, "it"))
    return check.typed(int, value, "it")


_SITE: dict[str, Callable[[object], Any]] = {
    "name": lambda value: site_name(check.typed(str, value, "it")),
    "signing": _signing,
    "node": _node,
    "revoked": lambda value: check.typed(bool, value, "it"),
    "not_before": _time,
    "not_after": _time,
    "max_examples": _examples,
}


def _card(name: str, signing: Ed25519PublicKey, node: bytes) -> str:
    site = {"name": name, "signing": base64.b64encode(signing.public_bytes_raw()).decode(), "node": node.decode()}
    return tomli_w.dumps({"site": [site]}, multiline_strings=True)
