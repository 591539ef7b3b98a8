"""Several tensors ("blocks") as coordinates on random directions, block by block: x_l ~ Z_l gamma_l (`sketch`).

    Budget    sum_l K_l = K, K_l in proportion to how much the blocks moved the time before     the paper's Ferret
    Subsets   K_l = K, of which n_l = max(2, floor(K |x_l| / max |x|)) are used                 its published code

The directions of a block depend on the seed and on the block's name; the number of a direction is its place in Z_l.

Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML 2025, arXiv:2409.06277.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.randomness import families, sketch
from fedft.randomness.directions import Directions
from fedft.randomness.independent import Table


@dataclass(frozen=True)
class Source:
    """Where the directions of a block come from: a family (`families`), or a table of given ones in its place."""

    family: str = "hadamard"
    table: Table | None = None
    """Directions of variance 1 for every block; a block that has K_l uses the first K_l of its own."""

    def __post_init__(self) -> None:
        check.one_of(families.FAMILIES, family=self.family)

    def directions(self, seed: int, name: str, count: int) -> Directions:
        """Z_l, the first `count` directions of the block `name`."""
        if self.table is not None:
            return Table({name: self.table.vectors[name][:count]})
        return families.make(self.family, seed, count)

    def check_count(self, least: int) -> None:
        """Raise ValueError where there is a table, and it has fewer than `least` directions."""
        if self.table is not None and self.table.count < least:
            raise ValueError(f"expected a table of at least {least} directions, got {self.table.count}")


Drawn = Sequence[tuple[str, Directions]]
"""The blocks in the order of their coordinates, each with its directions."""


class BlockSketch(Protocol):
    """How many coordinates each block gets, and which."""

    adaptive: ClassVar[bool]
    """`counts` follow the norms of the time before, which must therefore be known to everybody."""

    @property
    def source(self) -> Source:
        """Where the directions come from."""

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K_l of every block, from |x_l| the time before (None: there was none) and d_l, the elements of each."""

    def coordinates(self, drawn: Drawn, blocks: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """gamma_l of every block, float32 [K_l].

        Args:
            drawn: the blocks, and K_l directions for each.
            blocks: x_l by name, float32.
            norms: |x_l| in the order of `drawn`, float32.
            seed: of choices that are the caller's own.
        """


@dataclass(frozen=True)
class Budget:
    """A budget of K coordinates for all blocks together; from 2 to 4096 for each.

    Raises ValueError for a K outside 2 .. 2^24, an unknown scale or allocation, or a table of one direction.
    """

    K: int
    scale: str
    """One of `sketch.SCALES`."""
    allocation: str
    """`norm`: K_l in proportion to |x_l|; `error`: to sqrt(d_l) |x_l|; at first both to sqrt(d_l). See `allocate`."""
    source: Source = Source()
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check.between(sketch.LEAST, 2**24, K=self.K)
        check.one_of(sketch.SCALES, scale=self.scale)
        check.one_of(("norm", "error"), allocation=self.allocation)
        self.source.check_count(sketch.LEAST)

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K_l of every block; ValueError where K is too small for so many.

        >>> Budget(28, "unbiased", "norm").counts([4.0, 2.0, 1.0], [100, 400, 3600])
        [16, 8, 4]
        """
        weights = [math.sqrt(d) for d in sizes] if norms is None else norms
        if self.allocation == "error":
            weights = [w * math.sqrt(d) for w, d in zip(weights, sizes, strict=True)]
        table = self.source.table
        return sketch.allocate(weights, sizes, self.K, min(sketch.MOST, table.count if table else self.K))

    def coordinates(self, drawn: Drawn, blocks: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """The coordinates of every block, scaled by the rule."""
        law = "table" if self.source.table else self.source.family
        return [sketch.coordinates(z, name, blocks[name], self.scale, law) for name, z in drawn]


@dataclass(frozen=True)
class Subsets:
    """K directions for every block, of which a sender uses as many as the block moved, picked at random; zeros else.

    Coordinates are (K / n_l) / 3 of the unbiased ones: the code scales by d_l / n_l for directions of variance
    1 / (3 d_l), a third of the update. Raises ValueError for a K outside 2 .. 4096, or a table of fewer directions.
    """

    K: int
    source: Source = Source()
    adaptive: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check.between(sketch.LEAST, sketch.MOST, K=self.K)
        self.source.check_count(self.K)

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K for every block."""
        return [self.K] * len(sizes)

    def coordinates(self, drawn: Drawn, blocks: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """The coordinates of every block, n_l of them not zero."""
        rng, gammas = torch.Generator().manual_seed(seed), []
        for (name, z), norm in zip(drawn, norms.tolist(), strict=True):
            n = max(sketch.LEAST, int(z.count * norm / (float(norms.max()) or 1.0)))
            some = torch.zeros(z.count).index_fill_(0, torch.randperm(z.count, generator=rng)[:n], 1.0)
            gammas.append(sketch.coordinates(z, name, blocks[name]) * some * (z.count / n / 3))
        return gammas
