"""A site in one block of secure sums: what it says, and what it refuses to say.

    begun      1 open -> keys (2)
    shares     3 book -> 4 shares
    delivered  5 boxes -> 6 ready
    masked     a vector of integers -> what the server sees of it
    opened     7 survivors -> 8 one share per dealer

A Member is a value: a call gives the next one and what is to be sent. The next one must be on the disk before anything
is sent: otherwise a killed site would draw new secrets and say two things under one key. The same message again gets
the same bytes.

PlanRefused carries one of

    bad_magic, version, malformed   bytes that are no such message
    secagg_roster         members or keys are not those of the roster that this site was given by people
    secagg_threshold      t is not floor(2 n / 3) + 1, or fewer than t take part, have dealt, or survived
    secagg_context        another block, specification, book or dealers than before; a key twice; a box that does not
                          open; a slot in which nothing was sent; survivors that never dealt
    secagg_slot_used      another vector for a slot: two vectors under the same masks give their difference away
    secagg_second_answer  other survivors for a slot that was answered: somebody's both kinds of share
    secagg_both_shares    survivors without this site, which is asked as one: its key beside its vector

No text of a refusal holds a secret.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft.privacy.secure_sum.context import Context, Spec

Draw = Callable[[int], bytes]
"""So many bytes that nobody can guess: the operating system's."""


@dataclass(frozen=True, repr=False)
class Member:
    """A site in a block, with its secrets."""

    context: Context
    spec: Spec
    cards: Mapping[str, bytes]
    """Ed25519 public keys, 32 raw bytes each, of all members by name."""
    name: str
    """The site's own."""
    signing_key: Ed25519PrivateKey
    draw: Draw = field(default=os.urandom, compare=False)

    def keys(self) -> bytes:
        """Message 2: the site's public keys of the block, signed."""
        raise NotImplementedError

    def shares(self, book: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 4: a box of shares for every other site in the book, message 3)."""
        raise NotImplementedError

    def delivered(self, message: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 6: ready) once every box of message 5 is open."""
        raise NotImplementedError

    def masked(self, slot: int, q: np.ndarray) -> tuple["Member", np.ndarray]:
        """(the next Member, uint32 or uint16 [spec.length]: the vector under its masks).

        The same vector gives the same bytes, until `erased`.

        Args:
            slot: from 0 to 15, each for one vector for ever.
            q: int32 [spec.length], within +-spec.largest; ValueError otherwise.
        """
        raise NotImplementedError

    def erased(self, slot: int) -> "Member":
        """The Member without its own secrets of a slot: for when the masked vector is on the disk."""
        raise NotImplementedError

    def opened(self, message: bytes) -> tuple["Member", bytes]:
        """(the next Member, message 8: a share of each dealer's self mask if it survived, of its key if it did not).

        The same survivors again get the same bytes; a slot has no others.
        """
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """All but the signing key, with secrets: for a file of mode 0600."""
        raise NotImplementedError


def begun(
    opened: bytes,
    cards: Mapping[str, bytes],
    name: str,
    signing_key: Ed25519PrivateKey,
    last_block: int,
    wanted: Spec,
    run: str,
    draw: Draw = os.urandom,
) -> Member:
    """The Member of a new block, once the server's message 1 says what this site knows already.

    Args:
        opened: message 1.
        cards: the roster that people gave to this site: Ed25519 public keys, 32 raw bytes each, by name.
        name: the site's own, which has `signing_key`'s key in the roster.
        last_block: the highest block so far; -1: none.
        wanted: the vector that the job implies.
        run: the run's id, 16 hexadecimal digits.
        draw: for secrets.
    Raises:
        PlanRefused: with a code of the module's table.
    """
    raise NotImplementedError


def from_bytes(data: bytes, signing_key: Ed25519PrivateKey, draw: Draw = os.urandom) -> Member:
    """The Member that `to_bytes` wrote. Raises OtherVersion for a form of another version."""
    raise NotImplementedError
