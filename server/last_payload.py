"""The payload that many sites are sent: its digest, and its bytes for sites of another version, made once."""

from fedft.security import sealed
from fedft.wire import messages, versions


class LastPayload:
    """What was made of the last payload; one is in memory at a time, and one rewriting of it."""

    def __init__(self) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Forget the payload."""
        self._hashed = b"", sealed.digest(b"")
        self._rewritten = b"", 0, b""

    def digest(self, payload: bytes) -> bytes:
        """SHA-256 of a payload."""
        if payload is not self._hashed[0]:
            self._hashed = payload, sealed.digest(payload)
        return self._hashed[1]

    def spoken(self, payload: bytes, version: int) -> bytes:
        """A payload of ours in a version of the protocol.

        Raises RejectedUpdate, `version`, where it says what that version has no words for.
        """
        if version == versions.newest():
            return payload
        if payload is not self._rewritten[0] or version != self._rewritten[1]:
            self._rewritten = payload, version, messages.in_version(payload, version)
        return self._rewritten[2]
