"""Arithmetic on named tensors: `Tensors` is a mapping of canonical names to tensors.

Nothing here changes its arguments. Sums run in float64 and are rounded once at the end, so the order of the terms is
lost in the last bit of a double, not of a float.
"""

import hashlib
import importlib
import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fedft.arithmetic import compiled
from fedft.arithmetic.norms import WithSquares, blocks
from fedft.arithmetic.norms import norm as norm

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]


class Digested(Mapping[str, Tensor]):
    """Named tensors that know their digest, because most of it was computed before."""

    @abstractmethod
    def digest(self) -> str:
        """What `digest` gives for a plain mapping of the same tensors."""


class Apart(Mapping[str, Tensor]):
    """Named tensors that are not in memory: each is made when it is asked for, and costs more than to look it up."""


def add(x: Tensors, y: Tensors) -> dict[str, Tensor]:
    """The sum x + y, name by name, in new memory. Raises ValueError where names or shapes differ."""
    return _pairwise(torch.add, x, y)


def sub(x: Tensors, y: Tensors) -> dict[str, Tensor]:
    """The difference x - y, name by name, in new memory. Raises ValueError where names or shapes differ."""
    return _pairwise(torch.sub, x, y)


def scale(x: Tensors, factor: float) -> dict[str, Tensor]:
    """Every tensor of `x` times `factor`, in its own dtype and new memory."""
    return {name: factor * t for name, t in x.items()}


def zeros_like(x: Tensors) -> dict[str, Tensor]:
    """Zeros with the names, shapes and dtypes of `x`."""
    return {name: torch.zeros_like(t) for name, t in x.items()}


def flat(x: Tensors) -> Tensor:
    """All entries of named tensors as one vector [P]: tensors in bytewise order of names, each row-major."""
    return torch.cat([x[n].reshape(-1) for n in sorted(x, key=str.encode)])


def shaped(x: Tensor, shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The named tensors of these shapes whose entries are the vector `x` [P], in new memory: undoes `flat`."""
    names = sorted(shapes, key=str.encode)
    pieces = x.split([math.prod(shapes[n]) for n in names])
    return {n: piece.reshape(tuple(shapes[n])).clone() for n, piece in zip(names, pieces, strict=True)}


def dot(x: Tensors, y: Tensors) -> float:
    """The inner product of x and y, each taken as one vector of all its entries, summed in float64.

    Raises ValueError where names differ.
    """
    _same_names(x, y)
    return sum(
        float(torch.dot(a.double().reshape(-1), b.double().reshape(-1)))
        for n in sorted(x)
        for a, b in zip(blocks(x[n]), blocks(y[n]), strict=True)
    )


def floats(x: Tensors) -> Tensors:
    """The tensors of `x` that hold floating-point numbers; lists of integers (seeds, places) are left out.

    >>> list(floats({"w": torch.ones(2), "seeds": torch.tensor([3, 7])}))
    ['w']
    """
    return x.floats() if isinstance(x, WithSquares) else {n: t for n, t in x.items() if t.is_floating_point()}


def nbytes(x: Tensors) -> int:
    """Bytes of all tensors of `x`."""
    return x.nbytes if isinstance(x, WithSquares) else sum(t.nbytes for t in x.values())


def same_bits(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors of one device are the same to the bit, signs of zeros and NaN included."""
    if (x.dtype, x.shape) != (y.dtype, y.shape):
        return False
    a, b = (t.detach().contiguous().view(-1).view(torch.uint8) for t in (x, y))
    return torch.equal(a, b)


def weighted_mean(items: Iterable[tuple[Tensors, float]], *, by_name: bool = False) -> dict[str, Tensor]:
    """The weighted mean sum_k n_k x_k / sum_k n_k of named tensors, reading the items once, one at a time.

    Memory is one float64 accumulator and one item, whatever the number of items; where the first is `Apart`, all are
    taken, and read name by name: it is then one tensor in float64 and one of an item. Weights count to 29 bits (numbers
    of examples below 2^29 exactly): times a float32 that is exact in float64, so every machine and kernel finds the
    same.

    Args:
        items: pairs (tensors, weight); the shapes of the first one hold for all; weights > 0, any scale.
        by_name: items may have unlike names: the mean of each is over the items that have it. Else the names of the
            first one hold for all.
    Returns:
        Tensors of the first item's dtype, accumulated in float64 and rounded once, in the order of their coming.
    Raises:
        ValueError: there is no item of positive weight, or names or shapes differ.

    >>> mean = weighted_mean([({"w": torch.tensor([2.0])}, 3), ({"w": torch.tensor([-2.0])}, 1)])
    >>> mean["w"].item()
    1.0
    """
    total: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    weights: dict[str, float] = {}
    whole, kernels = 0.0, None
    items = iter(items)
    for k, (tensors, weight) in enumerate(items):
        if not k and isinstance(tensors, Apart):
            return _name_by_name([(tensors, weight), *items], by_name=by_name)
        if not total:
            kernels = _kernels(tensors)
        if k and not by_name:
            _same_names(total, tensors)
        short = _to_29_bits(weight)
        for name, t in tensors.items():
            if first := name not in total:
                dtypes[name], total[name] = t.dtype, torch.empty(t.shape, dtype=torch.float64)
            _take(total[name], name, t, short, kernels, first=first)
            weights[name] = weights.get(name, 0.0) + short
            del t
        whole += short
        del tensors  # before the next one is made
    if not whole > 0 or not all(w > 0 for w in weights.values()):
        raise ValueError("expected at least one update of positive weight, got none")
    return {name: _quotient(total.pop(name), weights[name], dtype, kernels) for name, dtype in dtypes.items()}


def _name_by_name(items: Sequence[tuple[Tensors, float]], *, by_name: bool) -> dict[str, Tensor]:
    """`weighted_mean`, one name after the other, each over all items."""
    names = dict.fromkeys(name for tensors, _ in items for name in tensors)
    for tensors, _ in items if not by_name else ():
        _same_names(items[0][0], tensors)
    return {n: weighted_mean(({n: x[n]}, weight) for x, weight in items if n in x)[n] for n in names}


def _take(total: Tensor, name: str, t: Tensor, weight: float, kernels: ModuleType | None, *, first: bool) -> None:
    """Have `total` begin with, or grow by, weight * t. Raises ValueError for another shape."""
    if t.shape != total.shape:
        raise ValueError(f"{name} has shape {tuple(t.shape)}, the first one has {tuple(total.shape)}")
    (_begin if first else _add)(total, t, weight, kernels if t.dtype == torch.float32 else None)


def digest(x: Tensors) -> str:
    """SHA-256 of named tensors, hexadecimal: over names, dtypes, shapes and bytes, in bytewise order of names.

    Neither the device nor the order in the mapping changes the digest.
    """
    if isinstance(x, Digested):
        return x.digest()
    h = hashlib.sha256()
    for part in (part for name in sorted(x, key=str.encode) for part in digested(name, x[name])):
        h.update(part)
    return h.hexdigest()


def digested(name: str, x: Tensor) -> tuple[bytes, Any]:
    """What `digest` hashes of one named tensor: its name, dtype and shape, and its bytes, which are not copied."""
    raw = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data if x.numel() else b""
    return f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode(), raw


def in_one(drawers: Mapping[str, Tensors]) -> dict[str, Tensor]:
    """Tensors of several owners under "<owner>/<name>", contiguous: what one file holds. Owners have no slash."""
    return {f"{owner}/{name}": x.contiguous() for owner, drawer in drawers.items() for name, x in drawer.items()}


def drawers_of(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """The inverse of `in_one`: tensors by owner and name. Raises ValueError for a name without a slash."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, x in tensors.items():
        owner, slash, own = name.partition("/")
        if not slash:
            raise ValueError(f"expected '<owner>/<name>', got {name!r:.80}")
        found.setdefault(owner, {})[own] = x
    return found


def digest_of_texts(texts: Iterable[str]) -> str:
    """SHA-256 of texts in their order; hexadecimal."""
    return hashlib.sha256("".join(f"{text}\0" for text in texts).encode()).hexdigest()


def _kernels(x: Tensors) -> ModuleType | None:
    """The module of compiled sums where these pay for tensors like those of `x`; None means torch."""
    cpu = [t for t in x.values() if t.device.type == "cpu" and t.dtype == torch.float32]
    largest = max(cpu, key=Tensor.numel, default=None)
    if largest is None:
        return None
    times = -(-sum(t.numel() for t in cpu) // largest.numel()) if largest.numel() else 0
    return _compiled_sums() if compiled.library(largest, times) == "numba" else None


@cache
def _compiled_sums() -> ModuleType | None:
    """The module of sums compiled by numba, tried once; None where it fails and FEDFT_KERNELS does not demand it."""
    try:
        kernels = importlib.import_module("fedft.arithmetic.tensors_numba")
        total, found = torch.empty(3, dtype=torch.float64), torch.empty(3)
        kernels.begin(total, torch.tensor([1.0, 2.0, 3.0]), 2.0)
        kernels.add(total, torch.tensor([4.0, 5.0, 6.0]), 0.5)
        kernels.divide(found, total, 2.0)
        if found.tolist() != [2.0, 3.25, 4.5]:
            raise RuntimeError(f"they answer {found.tolist()} where [2.0, 3.25, 4.5] is right")
    except Exception as problem:  # a compiler may fail in any way, and torch does the same
        if compiled.forced():
            raise
        if not isinstance(problem, ImportError):
            log.warning("sums compiled by numba do not work here, torch does their work: %s", problem)
        return None
    return kernels


def _begin(total: Tensor, t: Tensor, weight: float, kernels: ModuleType | None) -> None:
    """total = weight * t."""
    if kernels:
        return kernels.begin(total, t, weight)
    for sum_, term in zip(blocks(total), blocks(t), strict=True):
        sum_.copy_(term).mul_(weight)


def _add(total: Tensor, t: Tensor, weight: float, kernels: ModuleType | None) -> None:
    """total += weight * t."""
    if kernels:
        return kernels.add(total, t, weight)
    for sum_, term in zip(blocks(total), blocks(t), strict=True):
        sum_.add_(term.double(), alpha=weight)


def _quotient(total: Tensor, by: float, dtype: torch.dtype, kernels: ModuleType | None) -> Tensor:
    """total / by in `dtype`; `total` is used up."""
    found = torch.empty(total.shape, dtype=dtype)
    if kernels and dtype == torch.float32:
        kernels.divide(found, total, by)
    else:
        for rounded, sum_ in zip(blocks(found), blocks(total), strict=True):
            rounded.copy_(sum_.div_(by))
    return found


def _to_29_bits(weight: float) -> float:
    """`weight` rounded to 29 significant bits."""
    mantissa, exponent = math.frexp(weight)
    return math.ldexp(round(mantissa * 2**29), exponent - 29)


def _pairwise(f: Callable[[Tensor, Tensor], Tensor], x: Tensors, y: Tensors) -> dict[str, Tensor]:
    _same_names(x, y)
    for name in x:
        if x[name].shape != y[name].shape:
            raise ValueError(f"{name} has shapes {tuple(x[name].shape)} and {tuple(y[name].shape)}")
    return {name: f(x[name], y[name]) for name in x}


def _same_names(x: Tensors, y: Tensors) -> None:
    if x.keys() != y.keys():
        raise ValueError(f"names differ: {sorted(x.keys() ^ y.keys())[:4]} are on one side only")
