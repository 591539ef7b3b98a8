"""What the clients of a simulation have spent: the largest epsilon in the ledgers of a run's folder.

Workers write the ledgers of their own clients, so they are read from the disk.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from fedft.client.privacy_ledger import FILE, Ledger
from fedft.privacy import accountant
from fedft.privacy.accountant import Release

Kinds = frozenset[Release]
"""Releases of one client, those of one kind in one."""


@dataclass
class ClientAccounts:
    """The accounts of all clients of one run."""

    folder: Path
    """The run's."""
    delta: float
    _known: dict[Kinds, float] = field(default_factory=dict)

    def largest(self) -> float:
        """Epsilon of the client that has spent most; 0.0 where nobody has spent anything. Raises StateDamaged."""
        ledgers = sorted(self.folder.glob(f"clients/*/{FILE}"))
        found = {accountant.merged(Ledger(path.parent).read().releases) for path in ledgers}
        self._known = {kinds: self._epsilon(kinds) for kinds in costliest(found)}
        return max(self._known.values(), default=0.0)

    def _epsilon(self, kinds: Kinds) -> float:
        if kinds not in self._known:
            return accountant.epsilon(sorted(kinds, key=lambda r: (r.noise_multiplier, r.probability)), self.delta)
        return self._known[kinds]


def costliest(clients: Collection[Kinds]) -> set[Kinds]:
    """Those of these clients of whom one has paid most: without any that cannot have paid more than another one.

    >>> few, many = frozenset({Release(1.0, 0.1, 5)}), frozenset({Release(1.0, 0.2, 5)})
    >>> costliest({few, many}) == {many}
    True
    """
    return {a for a in clients if a and not any(a != b and _covered(a, b) for b in clients)}


def _covered(a: Kinds, b: Kinds) -> bool:
    """Whether each release of the one is matched by one of the other of no more noise, rarer and no oftener."""
    if len(a) > 1 or len(b) != 1:
        return False
    (x,), (y,) = a, b
    return x.noise_multiplier >= y.noise_multiplier and x.probability <= y.probability and x.count <= y.count
