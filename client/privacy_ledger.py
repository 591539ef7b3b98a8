"""What a client's noise has cost so far: over all runs at a site, over this run in a simulation; durable.

    privacy-ledger.fedft    SHA-256 of the rest, then a line of JSON for each run that was begun and for each charge
    privacy-ledger.begun    says that there is a ledger: one that is not there any more was lost, and is not begun anew

A charge is on the disk before the work begins whose outcome it is for, so no crash makes the account too small. The
same work with the same key gives the same noise: it is released again, not once more, and charged once.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fedft import durable
from fedft.errors import StateDamaged
from fedft.privacy.accountant import Release, of_whole_updates

FILE = "privacy-ledger.fedft"
BEGUN = "privacy-ledger.begun"
SEEDED = "seeded"


@dataclass(frozen=True)
class Terms:
    """What stands for a whole run, from when this client first took part in it."""

    run: str
    mode: str
    """`[privacy] mode`."""
    rows: int
    """That the probability of a record being in a batch is computed from; it does not move with single records."""
    z: float
    """Noise multiplier."""
    epsilon: float | None = None
    """That z was computed from; None: z was said."""
    delta: float = 0.0


@dataclass(frozen=True)
class Charge:
    """One turn's releases."""

    run: str
    round: int
    work: str
    """Digest, hexadecimal, of all that the noise depends on but the key; "promised" where the server adds it."""
    key: str
    """Which key, without saying it: the beginning of its SHA-256, hexadecimal; "" where somebody else has it, SEEDED
    where everybody has."""
    mode: str
    z: float
    """Noise multiplier of each release."""
    q: float = 1.0
    """Probability of a record being in a step's batch."""
    steps: int = 1
    """Releases: a sum for each local step, or one of the whole turn."""

    @property
    def release(self) -> Release:
        """What the accountant takes it for.

        Noise that everybody knows is none.
        """
        if self.key == SEEDED:
            return Release(0.0, self.q, self.steps)
        if self.mode == "local-dp":
            return of_whole_updates(self.z, self.steps)
        return Release(self.z, self.q, self.steps)


@dataclass(frozen=True)
class Book:
    """A ledger as it was read."""

    runs: dict[str, Terms] = field(default_factory=dict)
    charges: tuple[Charge, ...] = ()

    def has(self, charge: Charge) -> bool:
        """Whether this work was charged with this key."""
        same = (charge.run, charge.round, charge.work, charge.key)
        return any((c.run, c.round, c.work, c.key) == same for c in self.charges)

    @property
    def releases(self) -> list[Release]:
        """Of all charges, in their order."""
        return [c.release for c in self.charges]


@dataclass
class Ledger:
    """The ledger in a folder, which is read each time: clients of several runs add to it. None: in memory only."""

    folder: Path | None = None
    _book: Book = field(default_factory=Book)

    def read(self) -> Book:
        """All that is in it; nothing of one that was never begun. Raises StateDamaged for one that was lost or altered.

        It is never begun at zero because it cannot be read: what was spent before would be forgotten.
        """
        if self.folder is None:
            return self._book
        path = self.folder / FILE
        if (body := durable.verified(path)) is None:
            if not (path.exists() or (self.folder / BEGUN).exists()):
                return Book()
            found = "is torn or altered" if path.exists() else "is gone"
            raise StateDamaged(
                f"{path}: {found}, so nobody knows what these rows have cost in privacy; restore it from a backup"
            )
        lines = [json.loads(line) for line in body.splitlines()]
        runs = {x["run"]: Terms(**x) for x in lines if "work" not in x}
        return Book(runs, tuple(Charge(**x) for x in lines if "work" in x))

    def begin(self, terms: Terms) -> Terms:
        """The terms of a run: those that stand, or these from now on, durably. Raises as `read`, or RunPaused."""
        book = self.read()
        if terms.run not in book.runs:
            self._write(Book({**book.runs, terms.run: terms}, book.charges))
        return book.runs.get(terms.run, terms)

    def charge(self, charge: Charge) -> None:
        """Add a charge, durably, unless just this work was charged. Raises as `read`, or RunPaused."""
        book = self.read()
        if not book.has(charge):
            self._write(Book(book.runs, (*book.charges, charge)))

    def _write(self, book: Book) -> None:
        self._book = book
        if self.folder is None:
            return
        durable.commit(self.folder / FILE, *_lines([*book.runs.values(), *book.charges]))
        if not (begun := self.folder / BEGUN).exists():
            durable.write(begun, f"{FILE} was begun; where it is missing, it was lost\n".encode(), mode=0o600)


def _lines(entries: Iterable[Terms | Charge]) -> Iterable[bytes]:
    return (json.dumps(asdict(entry)).encode() + b"\n" for entry in entries)
