"""The tensors of a state that only grows, as one mapping: `<version>.<name>` came with the round from that version on.

    history = History.of({})                      no rounds
    history = history.followed_by(0, {"x": ...})  the tensor "0.x"; what `history` was before stays as it was

Histories that follow from one another share their rounds, so a round costs the same at the first and the thousandth,
in memory and in time; but for the digest, which is over all names in bytewise order ("10." comes before "2."): what
comes behind the new ones is hashed again, which are as many rounds as have fewer digits in their number.
"""

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Digested, Tensors


@dataclass(frozen=True, eq=False)
class Round:
    """What one round has brought. Two are the same round if they are the same object."""

    version: int
    """From which it led to the next."""
    tensors: Tensors
    """By name, without the version; never changed in place."""

    @cached_property
    def digest(self) -> str:
        """Of its tensors, as `tensors.digest`."""
        return tensors.digest(self.tensors)

    @cached_property
    def digested(self) -> dict[bytes, tuple[bytes, Any]]:
        """What is hashed of each tensor, by name with the version."""
        return {name.encode(): tensors.digested(name, x) for name, x in self.items()}

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(name with the version, tensor) in the order in which they were given."""
        return ((f"{self.version}.{name}", x) for name, x in self.tensors.items())


@dataclass(eq=False)
class _Log:
    """Rounds that several histories share: each is the first so many of them."""

    rounds: list[Round] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [0])
    """Tensors of the first 0, 1, 2... rounds."""
    names: list[tuple[bytes, int]] = field(default_factory=list)
    """Of the tensors of the first `digested` rounds, in bytewise order, each with the place of its round."""
    hashed: list[Any] = field(default_factory=list)
    """SHA-256 after each of them."""
    digested: int = 0

    def add(self, told: Round) -> None:
        self.rounds.append(told)
        self.sizes.append(self.sizes[-1] + len(told.tensors))

    def begun(self, count: int) -> "_Log":
        """Another log that begins with the first `count` rounds."""
        return _Log(self.rounds[:count], self.sizes[: count + 1])

    def digest(self, count: int) -> str:
        """Of the first `count` rounds, which are at least those of the last time."""
        for at in range(self.digested, count):
            for key in self.rounds[at].digested:
                del self.hashed[bisect_left(self.names, (key, at)) :]
                insort(self.names, (key, at))
        self.digested = count
        h = self.hashed[-1].copy() if self.hashed else hashlib.sha256()
        for key, at in self.names[len(self.hashed) :]:
            for part in self.rounds[at].digested[key]:
                h.update(part)
            self.hashed.append(h.copy())
        return str(h.hexdigest())


class History(Digested):
    """Rounds in the order of their versions, and a mapping of all their tensors. Values: nothing here changes one."""

    def __init__(self, log: _Log | None = None, count: int = 0) -> None:
        """For `of` and `followed_by`; without arguments, no rounds."""
        self._log, self._count = log or _Log(), count

    @staticmethod
    def of(named: Tensors) -> "History":
        """`named` if it is a history, else the history of tensors named `<version>.<name>`, in whatever order.

        Raises ValueError for a name without a version.
        """
        if isinstance(named, History):
            return named
        found: dict[int, dict[str, Tensor]] = {}
        for key, x in named.items():
            number, _, name = key.partition(".")
            found.setdefault(int(number), {})[name] = x
        log = _Log()
        for version, told in sorted(found.items()):
            log.add(Round(version, told))
        return History(log, len(log.rounds))

    @property
    def rounds(self) -> list[Round]:
        """All of them, in a new list."""
        return self._log.rounds[: self._count]

    def since(self, version: int) -> list[Round]:
        """The rounds of `version` and later ones."""
        return self._log.rounds[self._until(version) : self._count]

    def before(self, version: int) -> "History":
        """The history of the rounds before `version`."""
        return self if (count := self._until(version)) == self._count else History(self._log, count)

    def followed_by(self, version: int, told: Tensors) -> "History":
        """The history with one more round, of the tensors `told`. Raises ValueError where it is not the latest."""
        log, count = self._log, self._count
        if count and log.rounds[count - 1].version >= version:
            raise ValueError(f"round {version} cannot follow round {log.rounds[count - 1].version}")
        new = Round(version, dict(told))
        if count < len(log.rounds):  # somebody else has gone on from here
            there = log.rounds[count]
            if (there.version, there.digest) == (version, new.digest):
                return History(log, count + 1)
            log = log.begun(count)
        log.add(new)
        return History(log, count + 1)

    def follows(self, count: int, last: Round | None) -> bool:
        """Whether the first `count` rounds here are those of a history of so many, whose last is `last`.

        Told by the last of them alone, which no history has without the rounds before it.
        """
        return count == 0 or (count <= self._count and self._log.rounds[count - 1] is last)

    def digest(self) -> str:
        """As `tensors.digest` of a plain mapping."""
        if self._count < self._log.digested:
            return tensors.digest(dict(self))
        return self._log.digest(self._count)

    def _until(self, version: int) -> int:
        """How many rounds there are before `version`."""
        rounds = self._log.rounds
        if 0 < version <= self._count and rounds[version - 1].version == version - 1:  # as nearly always: from 0 on
            return version
        return bisect_left(rounds, version, 0, self._count, key=lambda told: told.version)

    def __getitem__(self, key: str) -> Tensor:
        version, _, name = key.partition(".")
        if version.isdecimal() and (at := self._until(int(version))) < self._count:
            told = self._log.rounds[at]
            if str(told.version) == version:
                return told.tensors[name]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for told in self.rounds for name, _ in told.items())

    def __len__(self) -> int:
        return self._log.sizes[self._count]

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: without what is kept for the digest."""
        return History.of, (dict(self),)


def named(rounds: list[Round]) -> Mapping[str, Tensor]:
    """The tensors of these rounds by name, as a plain mapping."""
    return {name: x for told in rounds for name, x in told.items()}
