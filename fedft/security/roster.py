"""The roster: the file of the sites whose messages count, read, added to and revoked in.

Every change writes the whole file durably, or nothing; what the operator wrote into the file stays. Who changes it
waits for others who do, by a lock file beside it; a running server reads it again when it has changed.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import check, durable
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import roster_text
from fedft.security.key_files import MAX_FILE_BYTES, PUBLIC, read_text, write_new
from fedft.security.private_keys import load_public
from fedft.security.site_table import Site, card_text, site_of, site_of_card, site_tables

MAX_CARD_BYTES = 2**14  # a card comes from somebody else and takes 400 bytes
WAIT_S = 20.0  # for another process that changes the roster, as with a thousand cards
MAX_FAULTS = 20  # of cards that are shown


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
    """Add the site of one card to the roster file `roster`, as `enrol_all`; returns the site."""
    return enrol_all(roster, [card])[0]


def enrol_all(roster: Path, cards: Sequence[Path]) -> list[Site]:
    """Add the sites of card files to the roster file `roster`, all or none; returns the sites, in order of the cards.

    The roster's text so far stays as it is, and a card that is enrolled already changes nothing. Raises ConfigError,
    with a line for each card at fault, for a file that is no card, for a name or key that another site (or another
    card, or the server) has, and for a revoked site.
    """
    with _changing(roster) as (text, members):
        found = _Enrolment(roster, members)
        sites = [site for card in cards if (site := found.take(card)) is not None]
        if found.faults:
            raise ConfigError(_in_lines(found.faults, len(cards)))
        if found.new:
            tables = [card_text(site.name, site.signing, site.node) for site in found.new]
            _replace(roster, "\n\n".join([text.rstrip(), *map(str.rstrip, tables)]) + "\n")
        return sites


def revoke(roster: Path, name: str) -> None:
    """Write `revoked = true` into the table of site `name` in the file `roster`; comments and all else stay.

    A site that is revoked already stays so. Raises ConfigError if there is no such site.
    """
    with _changing(roster) as (text, members):
        _check_known(roster, [name], members)
        if not members[name].revoked:
            _replace(roster, roster_text.with_value(text, list(members).index(name), "revoked", True, roster))


def remove(roster: Path, names: Sequence[str]) -> None:
    """Take the tables of these sites out of the file `roster`, all or none; what stands between tables stays.

    What each table was is first added to `roster.log` beside the file, a line of JSON each: put back by hand, it is the
    site again. Raises ConfigError for a name that is not there.
    """
    with _changing(roster) as (text, members):
        _check_known(roster, names, members)
        order = list(members)
        edited, gone = roster_text.without(text, {order.index(name) for name in names}, roster)
        _note(roster, [{"act": "removed", "site": order[i], "table": table} for i, table in gone.items()])
        _replace(roster, edited)


def _note(roster: Path, acts: Sequence[Mapping[str, str]]) -> None:
    """Add a line for each act to the roster's log, durably. Raises RunPaused where the disk does not take it."""
    path = roster.with_name("roster.log")
    there = path.read_bytes() if path.exists() else b""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    lines = "".join(json.dumps({"at": now, **act}) + "\n" for act in acts)
    durable.append(path, there.rfind(b"\n") + 1, lines.encode())


@contextmanager
def _changing(roster: Path) -> Iterator[tuple[str, Mapping[str, Site]]]:
    """The roster's text and members, for a change inside the block: no other process changes it meanwhile."""
    taken = f"{roster}: another process is changing it; try again"
    with durable.alone(roster.with_name(f"{roster.name}.lock"), taken, WAIT_S):
        text = read_text(roster, "`fedft keys server` makes one")
        yield text, _roster(text, roster).members


def _replace(roster: Path, text: str) -> None:
    """Write the roster anew, unless the text could not be read again. Raises ConfigError."""
    if (size := len(text.encode())) > MAX_FILE_BYTES:
        raise ConfigError(f"{roster}: would have {size} bytes, at most {MAX_FILE_BYTES} are read; remove old sites")
    _roster(text, roster)
    write_new(roster, text.encode(), PUBLIC)


def _check_known(roster: Path, names: Sequence[str], members: Mapping[str, Site]) -> None:
    for name in names:
        if name not in members:
            raise ConfigError(f"{roster}: no site {name!r}{check.nearest(name, members)}")


class _Enrolment:
    """Cards that are looked at one after the other: which sites are new, and what is wrong with the others."""

    def __init__(self, roster: Path, members: Mapping[str, Site]) -> None:
        self.new: list[Site] = []
        self.faults: list[str] = []
        self._roster, self._members, self._there = roster, dict(members), set(members)
        self._owners = {key: site.name for site in members.values() for key in _keys(site)}
        server = roster.with_name("server.pub")
        self._server = load_public(server).public_bytes_raw() if server.exists() else b""

    def take(self, card: Path) -> Site | None:
        """The site of a card, in the roster or to be added; None for a card at fault."""
        try:
            site = read_card(card)
            known = self._members.get(site.name)
            if known is None:
                self._check_keys(site, card)
                self._members[site.name] = site
                self._owners |= dict.fromkeys(_keys(site), site.name)
                self.new.append(site)
                return site
            if known.fingerprint() != site.fingerprint():
                there = f"{self._roster} has" if site.name in self._there else "another card is of"
                remedy = "; `fedft keys remove` it first to replace them" * (site.name in self._there)
                raise ConfigError(f"{card}: {there} a site {site.name!r} with other keys{remedy}")
            if known.revoked:
                remedy = f"delete `revoked` in {self._roster} to take it back"
                raise ConfigError(f"{card}: site {site.name!r} is revoked; {remedy}")
            return known
        except ConfigError as e:
            self.faults.append(str(e))
            return None

    def _check_keys(self, site: Site, card: Path) -> None:
        for name, key in zip(("signing", "node"), _keys(site), strict=True):
            if key in self._owners:
                other = self._owners[key]
                raise ConfigError(f"{card}: [[site]] {name}: the key of {site.name!r} is also that of {other!r}")
            if key == self._server:
                raise ConfigError(f"{card}: [[site]] {name} is the server's own key")


def _in_lines(faults: Sequence[str], cards: int) -> str:
    """A line for each of the faults, up to MAX_FAULTS, and what became of the other cards."""
    lines = list(faults[:MAX_FAULTS])
    if cards > 1:
        more = f", {len(faults) - MAX_FAULTS} of them not shown" * (len(faults) > MAX_FAULTS)
        lines.append(f"nothing was enrolled: {len(faults)} of {cards} cards are at fault{more}")
    return "\n".join(lines)


def _keys(site: Site) -> tuple[bytes, bytes]:
    return site.signing.public_bytes_raw(), site.node


def _roster(text: str, path: Path) -> Roster:
    """The roster in a text; ConfigError names `path`, table and key."""
    members: dict[str, Site] = {}
    owners: dict[bytes, str] = {}
    for i, table in enumerate(site_tables(text, path), 1):
        where = f"{path}: [[site]] {i}"
        site = site_of(table, where)
        if site.name in members:
            raise ConfigError(f"{where} name: a second site {site.name!r}")
        for key, value in zip(("signing", "node"), _keys(site), strict=True):
            if value in owners:
                raise ConfigError(f"{where} {key}: the key of {site.name!r} is also that of {owners[value]!r}")
            owners[value] = site.name
        members[site.name] = site
    return Roster(members)
