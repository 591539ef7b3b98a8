"""Which server a site trusts: the one of its server.pub and ca.pem, or the one that took its place by a succession.

What a site has accepted is in its state folder, as long as server.pub there is the same:

    server.trust    SHA-256 of the rest, then JSON: the key in server.pub, the key in its place, the next authority, and
                    the one announced before it, by which the certificate is until the rotation is over
"""

import json
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import durable
from fedft.errors import FedftError
from fedft.security import private_keys, successions

log = logging.getLogger(__name__)

REMEDY = "take a new kit from its operator: `fedft keys unpack KIT keys --replace`, then start again"


class ServerTrust:
    """The server's key and authorities, as they are now; used by any thread."""

    def __init__(self, server_pub: Path, ca: Path, state: Path) -> None:
        """`state`: the site's state folder. Raises ConfigError and OSError for files that are not there."""
        first = private_keys.load_public(server_pub)
        self._first, self._path = first.public_bytes_raw(), state / "server.trust"
        self.key: Ed25519PublicKey = first
        self.ca = ca.read_bytes()
        """PEM certificates of all that may sign the server's."""
        self._authority = ""
        """That was announced last, in PEM."""
        self._said, self._lock = b"", threading.Lock()
        try:
            kept = json.loads(durable.verified(self._path) or b"{}")
            if bytes.fromhex(kept.get("first", "")) == self._first:
                self.key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(kept["key"]))
                self._authority = kept["ca"]
                self.ca += "\n".join(["", kept.get("before", ""), self._authority]).encode()
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning("%s cannot be read, and counts as lost: %s", self._path, e)

    def message(self, data: bytes, go_over: Callable[[Ed25519PublicKey, bytes], None]) -> bytes:
        """A message of the server without the succession in front of it.

        Where that is by the key that we trust, and in time, the new key is made durable, and then `go_over` is called
        with it and with the next authority in PEM. Any other is said once, and let be.
        """
        succession, rest = successions.apart(data)
        with self._lock:
            if succession and succession != self._said:
                self._said = succession
                self._take(succession, go_over)
        return rest

    def _take(self, data: bytes, go_over: Callable[[Ed25519PublicKey, bytes], None]) -> None:
        try:
            found = successions.opened(data)
        except ValueError as e:
            log.warning("the server announces new keys, and cannot: %s", e)
            return
        trusted = self.key.public_bytes_raw()
        if found.new == trusted:
            return
        if found.old != trusted:
            log.error("the server has replaced keys that are not those in server.pub; %s", REMEDY)
            return
        if datetime.now(UTC) >= found.until:
            log.error("the server replaced its keys, and this site was away until %s; %s", f"{found.until:%F}", REMEDY)
            return
        try:
            authority = found.authority.decode("ascii")
            kept = {"first": self._first.hex(), "key": found.new.hex(), "ca": authority, "before": self._authority}
            durable.commit(self._path, json.dumps(kept).encode())
        except FedftError as e:
            self._said = b""  # with the next message
            log.error("%s", e)
            return
        self.key, self._authority = Ed25519PublicKey.from_public_bytes(found.new), authority
        go_over(self.key, found.authority)
        log.warning("the server has replaced its keys, and the old ones signed for it: only the new count from now on")
