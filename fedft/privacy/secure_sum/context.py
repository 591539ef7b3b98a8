"""What a block of secure sums is about, in bytes that all its secrets are bound to: who takes part, and which vector.

    t      = floor(2 n / 3) + 1
    roster = SHA-256(for each member: u8 length | name UTF-8 | 32 bytes Ed25519)        in bytewise order of the names
    spec   = SHA-256(compact JSON, sorted keys: {"bits", "clip", "ring", "tensors": [[name, [shape]]...], "weights",
             and "noise" where there is some})
    ctx    = SHA-256("fedft-secagg/1\\0" | run 8 | block u32 | roster 32 | n u16 | t u16 | spec 32 | ring bits u8)

Little endian. A block is SLOTS one-time sums of the same members; members have the indices 1 .. n in the order above.
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from fedft import check

TAG = b"fedft-secagg/1\0"
SLOTS = 16
"""One-time sums of a block."""
FEWEST, MOST = 3, 128
"""Members of a block: with fewer than three a sum says too much, and every two members share a mask."""
_FIELDS = struct.Struct("<8sI32sHH32sB")


def threshold(n: int) -> int:
    """t of n members, more than two thirds: so many must answer before a sum can be opened.

    >>> threshold(5), threshold(100)
    (4, 67)
    """
    return 2 * n // 3 + 1


def members(cards: Mapping[str, bytes]) -> tuple[str, ...]:
    """The names in the order of their indices: bytewise, as UTF-8. The first has the index 1."""
    return tuple(sorted(cards, key=str.encode))


def roster_digest(cards: Mapping[str, bytes]) -> bytes:
    """SHA-256 of a roster, 32 bytes.

    Args:
        cards: Ed25519 public keys, 32 raw bytes each, by name; names have 1 to 255 bytes.
    """
    digest = hashlib.sha256()
    for name in members(cards):
        said = name.encode()
        if len(cards[name]) != 32:
            raise ValueError(f"expected 32 bytes as the key of {name!r}, got {len(cards[name])}")
        digest.update(bytes((len(said),)) + said + cards[name])
    return digest.digest()


@dataclass(frozen=True)
class Spec:
    """The vector that is summed: integers of `bits` bits, for numbers up to a public bound, in a ring of `ring` bits.

    Raises ValueError for values that no vector has.
    """

    bits: int
    """b, from 2 to 24: an integer lies in +-(2^(b-1) - 1)."""
    clip: float | tuple[float, ...]
    """R, the largest magnitude of a number: one for all tensors, or one for each in the order of `tensors`."""
    ring: int
    """16 or 32: sums are modulo 2^ring."""
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    """Name and shape of each; the vector is all of them, flat, one behind the other."""
    weights: str = "uniform"
    """Every client counts once."""
    noise: float = 0.0
    """sigma of the noise that any t clients have added to the sum, in integers (`noise_shares`); 0: none."""

    def __post_init__(self) -> None:
        check.between(2, 24, bits=self.bits)
        if self.ring not in (16, 32) or self.weights != "uniform":
            raise ValueError(f"expected ring 16 or 32 and uniform weights, got {self.ring} and {self.weights!r}")
        check.between(0, 2**31, noise=self.noise)
        clips = self.clips
        if len(clips) != len(self.tensors) or not all(0 < c < math.inf for c in clips):
            raise ValueError(f"wanted one finite clip above 0 or one per tensor ({len(self.tensors)}), got {self.clip}")
        if self.length < 1 or any(d < 0 for _, shape in self.tensors for d in shape):
            raise ValueError("the tensors of a secure sum have no entry")

    @property
    def clips(self) -> tuple[float, ...]:
        """R of each tensor."""
        return self.clip if isinstance(self.clip, tuple) else (self.clip,) * len(self.tensors)

    @property
    def length(self) -> int:
        """Entries of the vector."""
        return sum(math.prod(shape) for _, shape in self.tensors)

    @property
    def largest(self) -> int:
        """The largest magnitude of one client's integer: 2^(b-1) - 1."""
        return (1 << (self.bits - 1)) - 1

    def json(self) -> bytes:
        """The specification as everybody writes it, byte for byte.

        >>> Spec(24, 1.0, 32, (("w", (4,)),)).json()
        b'{"bits":24,"clip":1.0,"ring":32,"tensors":[["w",[4]]],"weights":"uniform"}'
        """
        noise = {"noise": float(self.noise)} if self.noise else {}
        clip = [float(c) for c in self.clip] if isinstance(self.clip, tuple) else float(self.clip)
        said = {"bits": self.bits, "clip": clip, "ring": self.ring, "tensors": self.tensors, "weights": self.weights}
        return json.dumps(said | noise, sort_keys=True, separators=(",", ":")).encode()

    @property
    def digest(self) -> bytes:
        """SHA-256 of `json()`, 32 bytes."""
        return hashlib.sha256(self.json()).digest()

    def most(self, count: int, t: int) -> int:
        """The largest magnitude in a sum of so many clients' integers, ten deviations of their noise with it."""
        return count * self.largest + math.ceil(10 * self.noise * math.sqrt(count / t))

    def check_fits(self, n: int) -> None:
        """Return None if the sum of n clients fits the ring: n 2^(b-1) + 10 sigma sqrt(n/t) < 2^(ring-1).

        Raises ValueError in one line.
        """
        if not self._fits(n):
            fit = sum(map(self._fits, range(1, n)))
            raise ValueError(f"sums of {self.bits} bits in a ring of {self.ring} have room for {fit} clients, not {n}")

    def _fits(self, n: int) -> bool:
        return n + self.most(n, threshold(n)) < 1 << (self.ring - 1)


def spec_of(said: bytes) -> Spec:
    """The Spec whose `json()` is `said`. For what this side has written itself; raises what a parser raises."""
    fields = json.loads(said)
    clip = fields["clip"]
    tensors = tuple((name, tuple(shape)) for name, shape in fields["tensors"])
    return Spec(
        fields["bits"], tuple(clip) if isinstance(clip, list) else clip, fields["ring"], tensors, fields["weights"],
        fields.get("noise", 0.0),
    )  # fmt: skip


@dataclass(frozen=True)
class Context:
    """What every key of a block is derived from, beside the secrets.

    Raises ValueError for fields that no block has.
    """

    run: str
    """The run's id: 16 lower-case hexadecimal digits."""
    block: int
    """Number of the block, below 2^32; a site takes only higher ones than its last."""
    roster: bytes
    """`roster_digest` of the members."""
    n: int
    """How many members there are, from FEWEST to MOST."""
    t: int
    """`threshold(n)`."""
    spec: bytes
    """`Spec.digest` of the vector."""
    ring_bits: int
    """16 or 32."""

    def __post_init__(self) -> None:
        if len(self.run) != 16 or not set(self.run) <= set("0123456789abcdef"):
            raise ValueError(f"expected a run of 16 lower-case hexadecimal digits, got {self.run!r}")
        check.between(FEWEST, MOST, members=self.n)
        check.between(0, 2**32 - 1, block=self.block)
        if self.t != threshold(self.n) or self.ring_bits not in (16, 32):
            wanted = f"expected t = {threshold(self.n)} of {self.n} members and a ring of 16 or 32 bits"
            raise ValueError(f"{wanted}, got {self.t} and {self.ring_bits}")

    @property
    def digest(self) -> bytes:
        """ctx, 32 bytes: the salt of all keys."""
        run = bytes.fromhex(self.run)
        fields = _FIELDS.pack(run, self.block, self.roster, self.n, self.t, self.spec, self.ring_bits)
        return hashlib.sha256(TAG + fields).digest()


def context_of(run: str, block: int, cards: Mapping[str, bytes], spec: Spec) -> Context:
    """The Context of a block of all of `cards`' members, summing vectors of `spec`. Raises ValueError."""
    return Context(run, block, roster_digest(cards), len(cards), threshold(len(cards)), spec.digest, spec.ring)
