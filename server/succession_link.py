"""A `Link` of a server whose keys were replaced: every message begins with the succession, so no site misses it."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.carriers.interface import Link, Refused
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import rotation

log = logging.getLogger(__name__)


def front(keys: Path, key: Ed25519PrivateKey) -> bytes:
    """The succession in the server's key folder `keys`, for all that is signed with `key` of it; b"" for none.

    Raises ConfigError for one that names another key: who signs with the key before is heard by nobody then.
    """
    if (found := rotation.succession(keys)) is None:
        return b""
    data, succession = found
    if succession.new != key.public_key().public_bytes_raw():
        raise ConfigError(f"{keys}: a rotation of its keys was broken off; `fedft keys rotate {keys}` goes on with it")
    until = f"{succession.until:%F %R} UTC"
    log.info("sites are told of the server's new keys; those that come until %s go over", until)
    return data


def announced(link: Link, front: bytes) -> Link:
    """The link itself, or one that puts the succession `front` before all that is pushed; b"" is none."""
    return SuccessionLink(link, front) if front else link


@dataclass
class SuccessionLink:
    """Another link, with some bytes in front of all that is pushed; see `fedft.carriers.interface.Link`."""

    link: Link
    front: bytes

    def nodes(self) -> Mapping[str, int]:
        """Of the other link."""
        return self.link.nodes()

    def speaks(self, node: int) -> int:
        """Of the other link."""
        return self.link.speaks(node)

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Push the bytes in front, then the payload, as one message; returns its id."""
        return self.link.push(node, kind, [self.front, *payload], group)

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """Of the other link."""
        return self.link.pull(ids, max_bytes)

    def forget(self, ids: Collection[str]) -> None:
        """Of the other link."""
        self.link.forget(ids)

    def close(self) -> None:
        """Close the other link."""
        self.link.close()
