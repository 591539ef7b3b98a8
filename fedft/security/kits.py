"""A kit: one file with everything public that a site needs of its server, in TOML.

    [kit]
    form = 1
    site = "north"                              name of the site that the kit is for
    card = "1f3a 9c0e ..."                      fingerprint of its keys, as the roster has them
    address = "fl.example.org:9443"             where the server is reached
    server = '''-----BEGIN PUBLIC KEY-----...'''     what the server signs with: becomes server.pub
    ca = '''-----BEGIN CERTIFICATE-----...'''        one or two authorities: becomes ca.pem

A kit is public and proves nothing by itself: both operators compare the fingerprint that is shown on both sides. What
is written is made anew from the values that were read, under names that are fixed here; a kit names no file.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import check
from fedft.errors import ConfigError
from fedft.security import private_keys
from fedft.security.key_files import PUBLIC, read_text, tables_of, write_new
from fedft.security.new_keys import authorities, certificate_facts
from fedft.security.roster import load_roster
from fedft.security.sealed import site_name
from fedft.security.site_table import Site, grouped

FORM = 1
PORT = 9443
MAX_KIT_BYTES = 2**16  # two authorities and a key take some 3,000
MAX_AUTHORITIES = 2
_ADDRESS = re.compile(r"(?:[^\s:/@\[\]]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):[0-9]{1,5}")
_KEYS = ("form", "site", "card", "address", "server", "ca")


@dataclass(frozen=True)
class Kit:
    """What a server tells one of its sites."""

    site: str
    """The site's name."""
    card: str
    """Fingerprint of the site's keys."""
    address: str
    """host:port of the server."""
    server: Ed25519PublicKey
    """The key that the server signs with."""
    authorities: tuple[x509.Certificate, ...]
    """Who may sign the server's certificate; one or two."""

    def fingerprint(self) -> str:
        """32 hexadecimal digits in groups of four, of the server's key and authorities, to compare by telephone."""
        return _fingerprint(self.server, self.authorities)

    def files(self) -> dict[str, bytes]:
        """The site's two files of the server by name."""
        public = self.server.public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        return {"ca.pem": b"".join(a.public_bytes(pem.Encoding.PEM) for a in self.authorities), "server.pub": public}

    def text(self) -> str:
        """The kit as its file holds it."""
        ours: dict[str, Any] = {"form": FORM, "site": self.site, "card": self.card, "address": self.address}
        files = {name: data.decode() for name, data in self.files().items()}
        said = tomli_w.dumps(
            {"kit": ours | {"server": files["server.pub"], "ca": files["ca.pem"]}}, multiline_strings=True
        )
        return f"# For the site {self.site}: fedft keys unpack THIS_FILE keys\n\n{said}"


def made(folder: Path, name: str, address: str = "") -> Kit:
    """The kit for site `name` of the server's key folder `folder`.

    `address` is host:port, "" for the first name of the server's certificate and PORT. Raises ConfigError for a site
    that is not in the roster, for an address that is none, or that the certificate is not for.
    """
    members = load_roster(folder / "roster.toml").members
    if name not in members:
        raise ConfigError(f"{folder / 'roster.toml'}: no site {name!r}{check.nearest(name, members)}")
    facts = certificate_facts(folder / "server.pem")
    host = next((n for n in facts.names if not n.startswith("*.")), "localhost")
    address = address or f"{f'[{host}]' if ':' in host else host}:{PORT}"
    try:
        _checked_address(address)
    except ValueError as e:
        raise ConfigError(f"--address: {e}") from e
    for fault in facts.faults(address.rpartition(":")[0].strip("[]")):
        raise ConfigError(fault)
    server = private_keys.load_public(folder / "server.pub")
    return Kit(name, members[name].fingerprint(), address, server, tuple(authorities(folder / "ca.pem")))


def fingerprint(folder: Path) -> str:
    """Of the kits of the server's key folder `folder`, as it is now."""
    return _fingerprint(private_keys.load_public(folder / "server.pub"), authorities(folder / "ca.pem"))


def _fingerprint(server: Ed25519PublicKey, authorities: Sequence[x509.Certificate]) -> str:
    parts = [server.public_bytes_raw(), *(a.public_bytes(pem.Encoding.DER) for a in authorities)]
    return grouped(hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest())


def read(path: Path) -> Kit:
    """The kit in the file `path`. Raises ConfigError in one line for whatever else is in it."""
    text = read_text(path, "the server's operator makes one with `fedft keys kit`", MAX_KIT_BYTES)
    tables = tables_of(text, path)
    kit = tables.get("kit")
    if set(tables) != {"kit"} or not isinstance(kit, dict):
        raise ConfigError(f"{path}: wanted one table [kit], as `fedft keys kit` writes it")
    for key in sorted({*kit, *_KEYS}):
        if key not in kit or key not in _KEYS:
            raise ConfigError(f"{path}: [kit] {'needs' if key in _KEYS else 'has no'} {key[:64]!r}")
    try:
        if check.typed(int, kit["form"], "form") != FORM:
            raise ValueError(f"form is {kit['form']}, wanted {FORM}: made by another version of fedft")
        texts = {key: check.typed(str, kit[key], key) for key in _KEYS[1:]}
        name, address = site_name(texts["site"]), _checked_address(texts["address"])
        if not re.fullmatch(r"[0-9a-f]{4}( [0-9a-f]{4}){7}", texts["card"]):
            raise ValueError(f"card is {texts['card'][:64]!r}, wanted a fingerprint")
        return Kit(name, texts["card"], address, _public(texts["server"]), _authorities(texts["ca"]))
    except ValueError as e:
        raise ConfigError(f"{path}: [kit] {e}") from e


def unpack(kit: Kit, folder: Path, *, replace: bool = False) -> list[str]:
    """Write ca.pem and server.pub of `kit` into a site's key folder; returns the names of those that were not there.

    Files that say the same stay. Raises ConfigError where the kit is not for the keys in `folder`, or where other files
    are there and `replace` is not set; nothing is written then. Raises KeyFault where the site's keys cannot be used.
    """
    signing = private_keys.load_signing(folder / "signing.key").public_key()
    node = private_keys.node_bytes(private_keys.load_ecdsa(folder / "node.key").public_key())
    if Site(kit.site, signing, node).fingerprint() != kit.card:
        raise ConfigError(
            f"{folder}: the kit is for a site {kit.site!r} with the fingerprint {kit.card}, whose keys these are not"
        )
    new = {}
    for name, data in kit.files().items():
        path = folder / name
        if path.exists() and path.read_bytes() == data:
            continue
        if path.exists() and not replace:
            raise ConfigError(f"{path}: there already, and another; --replace takes the kit's, if you trust the kit")
        new[path] = data
    for path, data in new.items():
        write_new(path, data, PUBLIC)
    return [path.name for path in new]


def _checked_address(address: str) -> str:
    if not _ADDRESS.fullmatch(address) or not 0 < int(address.rpartition(":")[2]) < 65536:
        raise ValueError(f"address is {address[:80]!r}, wanted host:port")
    return address


def _public(text: str) -> Ed25519PublicKey:
    try:
        key = pem.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("server is no Ed25519 public key in PEM")
    return key


def _authorities(text: str) -> tuple[x509.Certificate, ...]:
    try:
        found = tuple(x509.load_pem_x509_certificates(text.encode()))
    except (ValueError, x509.InvalidVersion):
        found = ()
    if not 1 <= len(found) <= MAX_AUTHORITIES:
        raise ValueError(f"ca has {len(found)} certificates in PEM, wanted one, or two while a new one takes over")
    return found
