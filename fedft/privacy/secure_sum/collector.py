"""The server in one block of secure sums: what it asks and collects, none of which says anything of a single site.

    open -> took_keys ... -> book -> took_shares ... -> deliver ... took_ready         once per block
    sites' masked vectors -> unmask -> took_opening ... -> enough -> sum               once per slot

What has been said stays said: `book`, `deliver` and `unmask` fix their content with the first call, before anybody is
asked, and the state must be on the disk before the message leaves. RejectedUpdate carries one of

    bad_magic, version, malformed   bytes that are no such message of this block
    secagg_context        of another block or slot
    secagg_roster         keys that are not signed by their site's key, or of no member
    secagg_threshold      fewer than t sent keys, dealt, or survived: try again with more, or in a new slot
    secagg_out_of_range   what was opened is no possible sum: discard the round
    late, equivocation    after the door was closed; other bytes than before
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from fedft.privacy.secure_sum.context import Context, Spec


@dataclass(repr=False)
class Block:
    """A block as the server knows it; methods change it."""

    context: Context
    cards: Mapping[str, bytes]
    """Ed25519 public keys, 32 raw bytes each, of all members by name."""
    spec: Spec

    def open(self) -> bytes:
        """Message 1, for every member."""
        raise NotImplementedError

    def took_keys(self, name: str, payload: bytes) -> None:
        """Take a site's message 2; the same again is fine. Raises RejectedUpdate."""
        raise NotImplementedError

    def book(self) -> bytes:
        """Message 3, for every site that sent keys; fixed from now on. Raises RejectedUpdate("secagg_threshold")."""
        raise NotImplementedError

    def took_shares(self, name: str, payload: bytes) -> None:
        """Take a site's message 4; the same again is fine. Raises RejectedUpdate."""
        raise NotImplementedError

    def deliver(self, name: str) -> bytes:
        """Message 5, for a site that dealt; who dealt is fixed from now on. Raises RejectedUpdate."""
        raise NotImplementedError

    def took_ready(self, name: str, payload: bytes) -> None:
        """Take a site's message 6. Raises RejectedUpdate."""
        raise NotImplementedError

    @property
    def dealers(self) -> tuple[str, ...]:
        """D: the sites that dealt shares, in roster order; only their vectors can be summed. () before `deliver`."""
        raise NotImplementedError

    @property
    def ready(self) -> tuple[str, ...]:
        """The dealers that have opened their boxes, in roster order: who can be asked for a masked vector."""
        raise NotImplementedError

    def unmask(self, slot: int, survivors: Iterable[str]) -> bytes:
        """Message 7, for every survivor; the survivors of a slot are fixed from now on, ValueError for others.

        Raises RejectedUpdate("secagg_threshold") for fewer than t.
        """
        raise NotImplementedError

    def took_opening(self, slot: int, name: str, payload: bytes) -> None:
        """Take a survivor's message 8; the same again is fine. Raises RejectedUpdate."""
        raise NotImplementedError

    def enough(self, slot: int) -> bool:
        """Whether t survivors have opened a slot."""
        raise NotImplementedError

    def sum(self, slot: int, masked: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sum of the survivors' integers, int64 [spec.length].

        Raises RejectedUpdate("secagg_out_of_range") where what was opened is none.

        Args:
            slot: one that has `enough` openings.
            masked: the survivors' vectors by name, uint32 or uint16 [spec.length]; others in it are not read.
        """
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The whole block, for a file."""
        raise NotImplementedError


def from_bytes(data: bytes) -> Block:
    """The Block that `to_bytes` wrote. Raises OtherVersion for a form of another version."""
    raise NotImplementedError
