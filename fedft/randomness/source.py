"""Where the directions of a method come from: a family and a seed, or given numbers in their place."""

import math
from dataclasses import dataclass

from fedft import check
from fedft.randomness import families
from fedft.randomness.directions import Directions
from fedft.randomness.independent import Table


@dataclass(frozen=True)
class Source:
    """Where directions come from. Raises ValueError for a family that there is not."""

    family: str = "hadamard"
    table: Table | None = None
    """Directions of variance 1 for every tensor, whatever the seed, so that published numbers can be checked by hand;
    of fewer the first are taken."""

    def __post_init__(self) -> None:
        check.one_of(families.FAMILIES, family=self.family)

    def directions(self, seed: int, count: int) -> Directions:
        """The first `count` directions of every tensor. Raises ValueError where the table has fewer."""
        if self.table is not None:
            self.check_count(count)
            return Table({name: vectors[:count] for name, vectors in self.table.vectors.items()})
        return families.make(self.family, seed, count)

    @property
    def largest_entry(self) -> float:
        """No entry of a direction is larger than this."""
        return math.inf if self.table is not None else families.LARGEST_ENTRY[self.family]

    def check_count(self, least: int) -> None:
        """Raise ValueError where there is a table, and it has fewer than `least` directions."""
        if self.table is not None and self.table.count < least:
            raise ValueError(f"expected a table of at least {least} directions, got {self.table.count}")
