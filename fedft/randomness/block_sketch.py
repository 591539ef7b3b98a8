"""Several tensors as coordinates on random directions, block by block: x_l ~ Z_l gamma_l (`sketch`).

    Budget    a tensor is a block; sum_l K_l = K, K_l as the blocks moved the time before       the paper's Ferret
    Subsets   small neighbours are one block; K_l = K, of which n_l are used                    its published code

The directions of a block are those of its tensors, one behind the other: they depend on the seed and on the tensors'
names, and the number of a direction is its place in Z_l.

Shu et al., "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML 2025, arXiv:2409.06277.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.randomness import sketch
from fedft.randomness.directions import Directions
from fedft.randomness.source import Source

Block = tuple[str, ...]
"""The names of tensors that are one vector, in this order."""
Drawn = Sequence[tuple[Block, Directions]]
"""The blocks in the order of their coordinates, each with its directions."""
LONGEST_TERM = 10.0  # the published code's max_norm


class BlockSketch(Protocol):
    """How many coordinates each block gets, and which."""

    @property
    def adaptive(self) -> bool:
        """`counts` follow the norms of the time before, which must therefore be known to everybody."""

    @property
    def source(self) -> Source:
        """Where the directions come from."""

    def blocks(self, sizes: Mapping[str, int]) -> list[Block]:
        """The blocks in the order of their coordinates, of the tensors' elements by name in the model's order."""

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K_l of every block, from |x_l| the time before (None: there was none) and d_l, the elements of each."""

    def coordinates(self, drawn: Drawn, tensors: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """gamma_l of every block, float32 [K_l].

        Args:
            drawn: the blocks, and K_l directions for each.
            tensors: by name, float32; x_l is those of a block one behind the other.
            norms: |x_l| in the order of `drawn`, float32.
            seed: of choices that are the caller's own.
        """

    def bounded(self, gamma: Tensor, z: Directions, sizes: Mapping[str, int], rate: float) -> Tensor:
        """The coordinates as they are rebuilt, of a mean that `rate` was multiplied to.

        Args:
            gamma: of one block, float32 [K_l]; not modified.
            z: its directions.
            sizes: the elements of its tensors by name.
            rate: the server's.
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
    """`norm`: K_l in proportion to |x_l|; `error`: to sqrt(d_l) |x_l|; at first both to sqrt(d_l), and `size` always.
    See `allocate`."""
    source: Source = field(default_factory=Source)

    def __post_init__(self) -> None:
        check.between(sketch.LEAST, 2**24, K=self.K)
        check.one_of(sketch.SCALES, scale=self.scale)
        check.one_of(("norm", "error", "size"), allocation=self.allocation)
        self.source.check_count(sketch.LEAST)

    @property
    def adaptive(self) -> bool:
        """Whether `counts` follow norms."""
        return self.allocation != "size"

    def blocks(self, sizes: Mapping[str, int]) -> list[Block]:
        """Every tensor by itself, in the order of the names' UTF-8 bytes."""
        return [(n,) for n in sorted(sizes, key=str.encode)]

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K_l of every block; ValueError where K is too small for so many.

        >>> Budget(28, "unbiased", "norm").counts([4.0, 2.0, 1.0], [100, 400, 3600])
        [16, 8, 4]
        """
        weights = [math.sqrt(d) for d in sizes] if norms is None or not self.adaptive else norms
        if self.allocation == "error":
            weights = [w * math.sqrt(d) for w, d in zip(weights, sizes, strict=True)]
        table = self.source.table
        return sketch.allocate(weights, sizes, self.K, min(sketch.MOST, table.count if table else self.K))

    def coordinates(self, drawn: Drawn, tensors: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """The coordinates of every block, scaled by the rule."""
        law = "table" if self.source.table else self.source.family
        return [sketch.coordinates(z, name, tensors[name], self.scale, law) for (name,), z in drawn]

    def bounded(self, gamma: Tensor, z: Directions, sizes: Mapping[str, int], rate: float) -> Tensor:
        """The coordinates themselves."""
        return gamma


@dataclass(frozen=True)
class Subsets:
    """K directions for every block, of which a sender uses as many as the block moved, picked at random; zeros else.

    Of a block n_l = max(2, floor(K |x_l| / max |x|)) are used, and coordinates are (K / n_l) / 3 of the unbiased ones:
    the code scales by d_l / n_l for directions of variance 1 / (3 d_l), a third of the update. Raises ValueError for a
    K outside 2 .. 4096, a table of fewer directions, or an order that does not have each of them once.
    """

    K: int
    source: Source = field(default_factory=Source)
    order: tuple[int, ...] = ()
    """Numbers of the directions as every block takes them; empty: at random."""

    @property
    def adaptive(self) -> bool:
        """Never: all have the same."""
        return False

    def __post_init__(self) -> None:
        check.between(sketch.LEAST, sketch.MOST, K=self.K)
        self.source.check_count(self.K)
        if self.order and sorted(self.order) != list(range(self.K)):
            raise ValueError(f"draws have each of 0 .. {self.K - 1} once, in an order; got {check.quoted(self.order)}")

    def blocks(self, sizes: Mapping[str, int]) -> list[Block]:
        """Neighbours in the model together, as long as they are at most 0.9 of the median tensor; larger ones alone.

        >>> Subsets(2).blocks({"embed": 800, "norm.a": 10, "norm.b": 10, "down": 400, "norm.c": 10})
        [('embed',), ('norm.a',), ('norm.b',), ('down',), ('norm.c',)]
        >>> Subsets(2).blocks({"up": 800, "down": 800, "norm.a": 10, "norm.b": 10, "head": 900})
        [('up',), ('down',), ('norm.a', 'norm.b'), ('head',)]
        """
        most, found, full = int(0.9 * statistics.median(sizes.values())), list[Block](), 0
        for name, size in sizes.items():
            if found and full + size <= most:
                found[-1] = (*found[-1], name)
                full += size
            else:
                found.append((name,))
                full = size
        return found

    def counts(self, norms: Sequence[float] | None, sizes: Sequence[int]) -> list[int]:
        """K for every block."""
        return [self.K] * len(sizes)

    def coordinates(self, drawn: Drawn, tensors: Tensors, norms: Tensor, seed: int) -> list[Tensor]:
        """The coordinates of every block, n_l of them not zero."""
        rng, gammas = torch.Generator().manual_seed(seed), []
        for (block, z), norm in zip(drawn, norms.tolist(), strict=True):
            n = max(sketch.LEAST, int(z.count * norm / (float(norms.max()) or 1.0)))
            order = torch.tensor(self.order) if self.order else torch.randperm(z.count, generator=rng)
            some = torch.zeros(z.count).index_fill_(0, order[:n], 1.0)
            inner = torch.stack([z.dot(tensors[name], name) for name in block]).sum(0)
            gammas.append((inner / z.count).float() * some * (z.count / n / 3))
        return gammas

    def bounded(self, gamma: Tensor, z: Directions, sizes: Mapping[str, int], rate: float) -> Tensor:
        """Every term gamma_j z_j of the block's change is at most 10 long, as the code has it before the rate."""
        most, new = LONGEST_TERM * rate, gamma.clone()
        longest = self.source.largest_entry * math.sqrt(sum(sizes.values()))
        for j in (gamma.abs().double() * longest > most).nonzero().flatten().tolist():
            length = math.hypot(*(sketch.size(z.direction(n, j, (d,))) for n, d in sizes.items()))
            if abs(float(gamma[j])) * length > most:
                new[j] = math.copysign(most / length, float(gamma[j]))
        return new
