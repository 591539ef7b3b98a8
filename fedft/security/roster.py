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

from fedft import check, durable
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import roster_text
from fedft.security.enrolment import Enrolment, keys_of, replaced
from fedft.security.key_files import MAX_FILE_BYTES, PUBLIC, read_text, write_new
from fedft.security.sealed import Verifies
from fedft.security.site_table import Site, card_text, site_of, site_of_card, site_tables

MAX_CARD_BYTES = 2**14  # a card comes from somebody else and takes 400 bytes
WAIT_S = 20.0  # for another process that changes the roster, as with a thousand cards
MAX_FAULTS = 20  # of cards that are shown


class Keyring(Protocol):
    """Whose messages count: a `Roster`, or one that changes while the run goes on."""

    @property
    def members(self) -> Mapping[str, Any]:
        """The sites by name."""

    def key_of(self, name: str) -> Verifies:
        """What the site's messages are verified with. Raises RejectedUpdate for a site that does not count."""


@dataclass(frozen=True)
class Roster:
    """The sites of a roster file by name, in the order of the file; also those whose messages do not count (now)."""

    members: Mapping[str, Site]

    @property
    def cards(self) -> dict[str, bytes]:
        """The signing keys, 32 raw bytes each, of all sites by name, also of those that do not count."""
        return {name: site.signing.public_bytes_raw() for name, site in self.members.items()}

    def key_of(self, name: str) -> Verifies:
        """What the messages of site `name` are verified with: its key, or either of two while an old one counts.

        Raises RejectedUpdate with code `unknown_client` for a name that is not in the roster, and `revoked` for a site
        that is revoked, expired or not yet valid.
        """
        site = self.members.get(name)
        if site is None:
            raise RejectedUpdate("unknown_client", f"no site {name!r} in the roster")
        if (state := site.state()) != "enrolled":
            raise RejectedUpdate("revoked", f"the key of site {name!r} does not count: {state}")
        return site.key()


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

    The roster's text so far stays as it is, and a card that is enrolled already changes nothing. A card with other keys
    of a site that is here, signed by the key that is here (`fedft keys rotate`), replaces its keys: the old ones count
    for OVERLAP more, and what they were is in roster.log. Raises ConfigError, with a line for each card at fault, for a
    file that is no card, for a name or key that another site (or another card, or the server) has, and for a revoked
    site.
    """
    with _changing(roster) as (text, members):
        found = Enrolment(roster, members)
        sites, faults = [], []
        for card in cards:
            try:
                sites.append(found.take(read_card(card), card))
            except ConfigError as e:
                faults.append(str(e))
        if faults:
            raise ConfigError(_in_lines(faults, len(cards)))
        edited, order = text, list(members)
        for site in found.other:
            edited = roster_text.with_values(edited, order.index(site.name), replaced(members[site.name], site), roster)
        if found.new:
            tables = [card_text(site.name, site.signing, site.node) for site in found.new]
            edited = "\n\n".join([edited.rstrip(), *map(str.rstrip, tables)]) + "\n"
        if edited != text:
            before = [(site.name, members[site.name]) for site in found.other]
            _note(roster, [{"act": "replaced", "site": n, "table": card_text(n, m.signing, m.node)} for n, m in before])
            _replace(roster, edited)
        return sites


def revoke(roster: Path, name: str) -> None:
    """Write `revoked = true` into the table of site `name` in the file `roster`; comments and all else stay.

    A site that is revoked already stays so. Raises ConfigError if there is no such site.
    """
    with _changing(roster) as (text, members):
        _check_known(roster, [name], members)
        if not members[name].revoked:
            _replace(roster, roster_text.with_values(text, list(members).index(name), {"revoked": True}, roster))


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
    if not acts:
        return
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


def _in_lines(faults: Sequence[str], cards: int) -> str:
    """A line for each of the faults, up to MAX_FAULTS, and what became of the other cards."""
    lines = list(faults[:MAX_FAULTS])
    if cards > 1:
        more = f", {len(faults) - MAX_FAULTS} of them not shown" * (len(faults) > MAX_FAULTS)
        lines.append(f"nothing was enrolled: {len(faults)} of {cards} cards are at fault{more}")
    return "\n".join(lines)


def _roster(text: str, path: Path) -> Roster:
    """The roster in a text; ConfigError names `path`, table and key."""
    members: dict[str, Site] = {}
    owners: dict[bytes, str] = {}
    for i, table in enumerate(site_tables(text, path), 1):
        where = f"{path}: [[site]] {i}"
        site = site_of(table, where)
        if site.name in members:
            raise ConfigError(f"{where} name: a second site {site.name!r}")
        for key, value in keys_of(site).items():
            if value in owners:
                raise ConfigError(f"{where} {key}: the key of {site.name!r} is also that of {owners[value]!r}")
            owners[value] = site.name
        members[site.name] = site
    return Roster(members)
