"""The roster of a running server: its file, read again whenever it changes."""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft.errors import FedftError
from fedft.security import roster as keys
from fedft.security.site_table import Site

log = logging.getLogger(__name__)


class RosterFile:
    """The roster's file, read again when it changes: the revoked are out at once, the new are in at the next start.

    Any thread may ask.
    """

    def __init__(self, path: Path) -> None:
        """`path`: of the roster. Raises ConfigError for a file that is none."""
        self._path, self._read_at = path, (0, 0)
        self._lock = threading.Lock()
        self._roster = keys.load_roster(path)
        self._nodes = {m.name: m.node for m in self.members.values() if m.state() != "revoked"}

    @property
    def members(self) -> Mapping[str, Site]:
        """All sites of the file by name, as it was when last read; the revoked too."""
        return self._roster.members

    def key_of(self, name: str) -> Ed25519PublicKey:
        """The public key that the site signs with. Raises RejectedUpdate for a site that does not count now."""
        self._reload()
        return self._roster.key_of(name)

    def nodes(self) -> Mapping[str, bytes]:
        """The public node key of each site that may come."""
        self._reload()
        return self._nodes

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
            gone = [n for n in self._nodes if n not in self.members or self.members[n].state() == "revoked"]
            for name in gone:
                log.warning("%s is revoked", name)
            if gone:
                self._nodes = {name: key for name, key in self._nodes.items() if name not in gone}
