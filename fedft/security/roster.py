"""The roster: the file of the sites whose messages count, read, added to and revoked in.

Every change writes the whole file durably, or nothing; what the operator wrote into the file stays. One process at a
time changes a roster; a running server reads it again when it has changed.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import check
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security.key_files import PUBLIC, read_text, write_new
from fedft.security.private_keys import load_public
from fedft.security.site_table import Site, card_text, site_of, site_of_card, site_tables

MAX_CARD_BYTES = 2**14  # a card comes from somebody else and takes 400 bytes
ROSTER = """\
# The sites whose messages count. `fedft keys enrol` adds a [[site]] table, `fedft keys revoke` sets its `revoked`;
# these keys may be added by hand:
#   not_before, not_after   when the site counts, such as 2027-01-31T00:00:00Z
#   max_examples            the most examples one update of the site may claim (left out: 1000000)
"""


class Keyring(Protocol):
    """Whose messages count: a `Roster`, or one that changes while the run goes on."""

    @property
    def members(self) -> Mapping[str, Any]:
        """The sites by name."""

    def key_of(self, name: str) -> Ed25519PublicKey:
        """The public key that the site signs with. Raises RejectedUpdate for a site that does not count."""


@dataclass(frozen=True)
class Roster:
    """The sites of a roster file by name, in the order of the file; also those whose messages do not count (now)."""

    members: Mapping[str, Site]

    def key_of(self, name: str) -> Ed25519PublicKey:
        """The public key that site `name` signs its messages with.

        Raises RejectedUpdate with code `unknown_client` for a name that is not in the roster, and `revoked` for a site
        that is revoked, expired or not yet valid.
        """
        site = self.members.get(name)
        if site is None:
            raise RejectedUpdate("unknown_client", f"no site {name!r} in the roster")
        if (state := site.state()) != "enrolled":
            raise RejectedUpdate("revoked", f"the key of site {name!r} does not count: {state}")
        return site.signing


def load_roster(path: Path) -> Roster:
    """The roster in the file `path`: TOML with a [[site]] table for each site.

    Raises ConfigError naming file, table and key for whatever is wrong, and for a name or key that two sites have.
    """
    return _roster(read_text(path, "`fedft keys server` makes one"), path)


def read_card(card: Path) -> Site:
    """The site that the card file `card` is of, not yet in any roster.

    Raises ConfigError for anything but one [[site]] table with a name, two public keys and nothing else.
    """
    text = read_text(card, "a site's operator makes one with `fedft keys site`", MAX_CARD_BYTES)
    return site_of_card(text, card)


def enrol(roster: Path, card: Path) -> Site:
    """Add the site of the card file `card` to the roster file `roster`; returns the site.

    The roster's text so far stays as it is, and a card that is enrolled already changes nothing. Raises ConfigError for
    a file that is no card, for a name or key that another site (or the server) has, and for a revoked site.
    """
    site = read_card(card)
    text = read_text(roster, "`fedft keys server` makes one")
    known = _roster(text, roster).members.get(site.name)
    if known is not None:
        if known.fingerprint() != site.fingerprint():
            raise ConfigError(
                f"{card}: {roster} has a site {site.name!r} with other keys; delete its table there to replace them"
            )
        if known.revoked:
            raise ConfigError(f"{card}: site {site.name!r} is revoked; delete `revoked` in {roster} to take it back")
        return known
    server = roster.with_name("server.pub")
    if server.exists() and load_public(server) == site.signing:
        raise ConfigError(f"{card}: [[site]] signing is the server's own key")
    text = text.rstrip() + "\n\n" + card_text(site.name, site.signing, site.node)
    _roster(text, roster)  # a key that another site has is refused before anything is written
    write_new(roster, text.encode(), PUBLIC)
    return site


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
    wanted = [dict(t, revoked=True) if t["name"] == name else t for t in site_tables(text, roster)]
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
    """The roster in a text; ConfigError names `path`, table and key."""
    members: dict[str, Site] = {}
    owners: dict[bytes, str] = {}
    for i, table in enumerate(site_tables(text, path), 1):
        where = f"{path}: [[site]] {i}"
        site = site_of(table, where)
        if site.name in members:
            raise ConfigError(f"{where} name: a second site {site.name!r}")
        for key, value in (("signing", site.signing.public_bytes_raw()), ("node", site.node)):
            if value in owners:
                raise ConfigError(f"{where} {key}: the key of {site.name!r} is also that of {owners[value]!r}")
            owners[value] = site.name
        members[site.name] = site
    return Roster(members)
