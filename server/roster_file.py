"""The roster of a running server: its file, read again whenever it changes."""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fedft.errors import FedftError
from fedft.security import roster as keys
from fedft.security.sealed import Verifies
from fedft.security.site_table import Site

log = logging.getLogger(__name__)

LISTED_S = 1.0  # for which a list of keys is taken for right


class RosterFile:
    """A roster's file, read again when it has changed: whom it takes in or out counts, or does not, from then on.

    Any thread may ask.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the roster. Raises ConfigError for a file that is none."""
        self._path, self._read_at = path, (0, 0)
        self._lock = threading.Lock()
        self._roster = keys.load_roster(path)
        self._listed: Mapping[str, tuple[bytes, ...]] = {}
        self._listed_of: object = None
        self._listed_until = 0.0

    @property
    def members(self) -> Mapping[str, Site]:
        """All sites of the file by name, as it was when last read; the revoked too."""
        return self._roster.members

    def cards(self) -> dict[str, bytes]:
        """The signing keys, 32 raw bytes each, of all sites by name, also of those that do not count."""
        self._reload()
        return self._roster.cards

    def key_of(self, name: str) -> Verifies:
        """What verifies the signatures of a site. Raises RejectedUpdate for a site that does not count now."""
        self._reload()
        return self._roster.key_of(name)

    def nodes(self) -> Mapping[str, tuple[bytes, ...]]:
        """The public node keys with which each site may come, now."""
        self._reload()
        now = time.monotonic()  # old keys run out by the clock
        if self._listed_of is not self._roster or now > self._listed_until:
            self._listed_of, self._listed_until = self._roster, now + LISTED_S
            self._listed = {m.name: m.nodes() for m in self.members.values() if not m.revoked}
        return self._listed

    def present(self) -> Mapping[str, int]:
        """Most examples that an update may claim, by name of each site whose messages count now."""
        self._reload()
        return {m.name: m.max_examples for m in self.members.values() if m.state() == "enrolled"}

    def why_not(self, client: str) -> str:
        """Why a site's messages do not count now: "revoked", "expired", "not yet valid", "removed"; "" if they do."""
        site = self.members.get(client)
        state = "removed" if site is None else site.state()
        return "" if state == "enrolled" else state

    def _reload(self) -> None:
        with self._lock, suppress(OSError):
            found = self._path.stat()
            if (stamp := (found.st_mtime_ns, found.st_size)) == self._read_at:
                return
            self._read_at = stamp
            try:
                self._roster = keys.load_roster(self._path)
            except FedftError as e:
                log.error("%s; going on with the roster as it was", e)
