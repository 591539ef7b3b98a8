"""What becomes of cards at a roster: new sites, sites with other keys, and those that may not be."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedft.errors import ConfigError
from fedft.security.card_proofs import is_proven
from fedft.security.private_keys import load_public
from fedft.security.site_table import Site, encoded

OVERLAP = timedelta(days=30)  # for which a site's old keys count beside those that replace them


class Enrolment:
    """Cards that are looked at one after the other, before anything is written."""

    def __init__(self, roster: Path, members: Mapping[str, Site]) -> None:
        """`members`: of the roster file `roster`. Raises ConfigError where a server.pub beside it is none."""
        self.new: list[Site] = []
        """Sites that are not in the roster."""
        self.other: list[Site] = []
        """Sites that have other keys there, whose cards are signed by these."""
        self._roster, self._before, self._members = roster, members, dict(members)
        self._owners = {key: site.name for site in members.values() for key in keys_of(site).values()}
        server = roster.with_name("server.pub")
        self._server = load_public(server).public_bytes_raw() if server.exists() else b""

    def take(self, site: Site, card: Path) -> Site:
        """The site of the card file `card`, which is in the roster or is to be. Raises ConfigError for what may not be.

        A card that was taken before, or that says what the roster says, changes nothing.
        """
        known = self._members.get(site.name)
        if known is None:
            self._enter(site, card, self.new)
        elif known.revoked:
            remedy = f"delete `revoked` in {self._roster} to take it back"
            raise ConfigError(f"{card}: site {site.name!r} is revoked; {remedy}")
        elif known.fingerprint() != site.fingerprint():
            if known is not self._before.get(site.name):
                raise ConfigError(f"{card}: another card is of a site {site.name!r} with other keys")
            if not is_proven(site, known.signing):
                remedy = "`fedft keys rotate` at the site signs a card of new keys, `fedft keys remove` forgets the old"
                raise ConfigError(f"{card}: {self._roster} has a site {site.name!r} with other keys; {remedy}")
            self._enter(site, card, self.other)
        return self._members[site.name]

    def _enter(self, site: Site, card: Path, among: list[Site]) -> None:
        for name, key in keys_of(site).items():
            if key in self._owners:
                other = self._owners[key]
                raise ConfigError(f"{card}: [[site]] {name}: the key of {site.name!r} is also that of {other!r}")
            if key == self._server:
                raise ConfigError(f"{card}: [[site]] {name} is the server's own key")
        self._members[site.name] = site
        self._owners |= dict.fromkeys(keys_of(site).values(), site.name)
        among.append(site)


def keys_of(site: Site) -> dict[str, bytes]:
    """The site's public keys by their name in its table, the old ones too."""
    old = {"old_signing": site.old_signing.public_bytes_raw()} if site.old_signing else {}
    old |= {"old_node": site.old_node} if site.old_node else {}
    return {"signing": site.signing.public_bytes_raw(), "node": site.node, **old}


def replaced(site: Site, by: Site) -> dict[str, Any]:
    """The values of a roster's table of `site`, once the keys of the card `by` have taken the place of its own."""
    until = (datetime.now(UTC) + OVERLAP).replace(microsecond=0)
    old = {"old_signing": encoded(site.signing), "old_node": site.node.decode(), "old_until": until}
    return {"signing": encoded(by.signing), "node": by.node.decode(), **old}
