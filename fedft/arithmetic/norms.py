"""The L2 norm of named tensors, in float64; and tensors whose squares were added up when they were read."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 2**18  # entries


class WithSquares(Mapping[str, Tensor]):
    """Named tensors with the `squares` of each, which `norm` then need not read the entries for.

    Nobody changes the tensors in place: the squares would not be theirs any more.
    """

    def __init__(self, tensors: Mapping[str, Tensor], squares: Mapping[str, Sequence[float]]) -> None:
        """`squares`: by name, what the function of that name gives; of integers none."""
        self._tensors, self.squares = tensors, squares

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def floats(self) -> "WithSquares":
        """Those that hold floating-point numbers."""
        return WithSquares({n: t for n, t in self.items() if t.is_floating_point()}, self.squares)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        return sum(t.nbytes for t in self.values())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return repr(self._tensors)


def blocks(x: Tensor) -> tuple[Tensor, ...]:
    """The entries of a tensor in pieces of at most BLOCK: a float64 copy of one stays in the processor's cache."""
    return x.reshape(-1).split(BLOCK) if x.numel() > BLOCK else (x,)


def squares(x: Tensor, room: Tensor | None = None) -> list[float]:
    """The sum of the squares of each of a tensor's `blocks`, in float64.

    One that is not finite tells of an entry that is none: float32's squares are all within float64.

    `room`: float64, with as many entries as the longest block, or more; overwritten. None: it is made.
    """
    if room is None:
        room = torch.empty(min(x.numel(), BLOCK), dtype=torch.float64, device=x.device)
    found = []
    for block in blocks(x):
        doubles = room[: block.numel()].copy_(block.detach().reshape(-1))
        found.append(float(torch.dot(doubles, doubles)))
    return found


def squares_of_bytes(data: memoryview, room: Tensor) -> list[float]:
    """What `squares` gives for a tensor of the float32 entries in `data`: little endian, wherever they begin.

    `room`: float64, with as many entries as the longest block, or more; overwritten.
    """
    entries, found = np.frombuffer(data, "<f4"), []
    for begin in range(0, len(entries), BLOCK):
        block = entries[begin : begin + BLOCK]
        doubles = room[: len(block)]
        with np.errstate(invalid="ignore"):  # a NaN comes out in the sum
            np.copyto(doubles.numpy(), block)
        found.append(float(torch.dot(doubles, doubles)))
    return found


def norm(x: Mapping[str, Tensor]) -> float:
    """The L2 norm of all tensors of `x` taken as one vector, summed in float64."""
    known = x.squares if isinstance(x, WithSquares) else {}
    return sum(s for n in sorted(x) for s in (known[n] if n in known else squares(x[n]))) ** 0.5
