"""The body of a message: the tensors' bytes, one after the other, as its table says."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedft.arithmetic.norms import BLOCK, WithSquares, squares, squares_of_bytes
from fedft.arithmetic.tensors import Apart, Tensors
from fedft.compression.bit_packing import Reader, varint
from fedft.compression.codec import Part
from fedft.errors import RejectedUpdate
from fedft.update import Spec
from fedft.wire.table import Entry, form, type_of

MAX_ENTRIES = 2**31  # of all tensors of a message, in memory: four times what fp32 could hold
MAX_ABS = 1e4  # of a decoded float: weights are far below, and one client must not outweigh all others
LARGE = 2**20  # bytes of a body: of a shorter one the tensors cost little memory, and Python's turns count
AS_THEY_ARE = ("fp32", "int32", "uint16")  # wire types whose bytes are the numbers
MAX_LENGTH = 5  # bytes of a varint that says a tensor's length


def write_body(entries: Mapping[str, Entry], tensors: Tensors, seed: int) -> list[Part]:
    """The bytes of a message's tensors, in the order of its table, in parts that are not copied.

    Args:
        entries: of the tensors, from `describe`.
        tensors: by name; not modified.
        seed: 64 bits, of what codecs draw at random.
    """
    body: list[Part] = []
    for name, entry in entries.items():
        if not math.prod(entry.shape):
            continue
        codec, made, least, exact = form(name, entry)
        parts = codec.pack(name, tensors[name], seed)
        if not exact:
            made = sum(len(part) for part in parts)
            body.append(varint(made))
        body += parts
        if made < least:
            body.append(bytes(least - made))
    return body


def read_body(
    entries: Mapping[str, Entry], body: memoryview, look: Callable[[str, Tensor], None] | None = None
) -> dict[str, Tensor]:
    """The tensors in a message's body by name: contiguous, in new memory, all floats finite and within MAX_ABS.

    Raises RejectedUpdate (`nonfinite`, `out_of_bounds`) for other numbers, ValueError for bytes out of the format. All
    lengths are checked before anything is decoded, so a short message allocates little.

    `look` is called with each tensor of floats that has entries, as soon as it is read, and raises what `in_bounds`
    does: the default.
    """
    parts = _parts(entries, body)
    return {name: _read(name, entry, parts[name], look or in_bounds) for name, entry in entries.items()}


def _parts(entries: Mapping[str, Entry], body: memoryview) -> dict[str, memoryview]:
    """The bytes of each tensor in a message's body; ValueError where they are not as the table says."""
    r = Reader(body)
    if (total := sum(math.prod(e.shape) for e in entries.values())) > MAX_ENTRIES:
        raise ValueError(f"{total} entries, at most {MAX_ENTRIES} allowed")
    parts: dict[str, memoryview] = {}
    for name, entry in entries.items():
        _, most, least, exact = form(name, entry)
        if (n := most if exact else r.varint()) > most:
            raise ValueError(f"{n} bytes of tensor {name!r}, which is {entry}: at most {most} allowed")
        parts[name] = r.take(n)
        if n < least and (least - n > len(r.left) or any(r.take(least - n))):
            raise ValueError(f"{math.prod(entry.shape)} entries of {name!r} in {n} bytes, not filled up with zeros")
    r.close()
    return parts


class InMessage(WithSquares, Apart):
    """The tensors of a message, which stay in its bytes: each is made anew, in new memory, when it is asked for.

    So memory for all of them is never asked of the system, which costs more than to read them twice. What refuses
    numbers has been done when there is one of these.
    """

    def __init__(
        self, entries: Mapping[str, Entry], parts: Mapping[str, memoryview], squares: Mapping[str, Sequence[float]]
    ) -> None:
        """`parts`: the bytes of each tensor; `squares` as of any `WithSquares`."""
        super().__init__({}, squares)
        self._entries, self._parts = dict(entries), dict(parts)

    def __getitem__(self, name: str) -> Tensor:
        return _read(name, self._entries[name], self._parts[name], _seen_before)

    def floats(self) -> WithSquares:
        """Those that hold floating-point numbers, left where they are."""
        found = {name: entry for name, entry in self._entries.items() if entry.type == "fp32"}
        return InMessage(found, self._parts, self.squares)

    @property
    def nbytes(self) -> int:
        """Of all tensors, as of their bytes in the message."""
        return sum(len(self._parts[name]) for name in self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"InMessage({self._entries})"

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: the tensors themselves."""
        return WithSquares, (dict(self), self.squares)


def _seen_before(name: str, x: Tensor) -> None:
    """Nothing: its numbers were looked at when the message came."""


def read_with_squares(entries: Mapping[str, Entry], body: memoryview, *, apart: bool = False) -> WithSquares:
    """What `read_body` gives, with the sums of squares that a norm needs: each tensor is in the cache when it is read.

    These also tell that all entries are within MAX_ABS, unless a tensor's norm is above it.

    `apart`: of a LARGE body of numbers as they are (fp32, integers), the tensors are left in it, `InMessage`.
    """
    found: dict[str, list[float]] = {}
    largest = max((math.prod(entry.shape) for entry in entries.values()), default=0)
    room = torch.empty(min(BLOCK, largest), dtype=torch.float64)  # once: fresh memory costs more than the sums

    def look(name: str, x: Tensor) -> None:
        check(name, squares(x, room), lambda: x)

    def check(name: str, sums: list[float], made: Callable[[], Tensor]) -> None:
        found[name] = sums
        if not sum(found[name]) <= MAX_ABS**2:  # rounded sums of squares are no less than the largest of these
            in_bounds(name, made())

    if apart and len(body) >= LARGE and all(entry.type in AS_THEY_ARE for entry in entries.values()):
        parts = _parts(entries, body)
        whole = InMessage(entries, parts, found)
        for name, entry in entries.items():
            if entry.type == "fp32" and parts[name]:
                check(name, squares_of_bytes(parts[name], room), partial(whole.__getitem__, name))
        return whole
    return WithSquares(read_body(entries, body, look), found)


def in_bounds(name: str, x: Tensor) -> None:
    """Raise RejectedUpdate where a float is not finite, `nonfinite`, or beyond MAX_ABS, `out_of_bounds`."""
    if not math.isfinite(largest := largest_entry(x)):
        raise RejectedUpdate("nonfinite", f"tensor {name!r} has NaN or infinite entries")
    if largest > MAX_ABS:
        raise RejectedUpdate("out_of_bounds", f"tensor {name!r} has {largest:g}, above {MAX_ABS:g}")


def largest_entry(x: Tensor) -> float:
    """The largest magnitude in a tensor of floats that has entries; NaN if there is one."""
    lo, hi = (float(v) for v in torch.aminmax(x))  # a NaN anywhere comes out as both
    return max(-lo, hi)


def seen_tensors(entries: Mapping[str, Entry], tensors: Tensors, seed: int) -> dict[str, Tensor]:
    """`tensors` as the other side will see them, numbers that are not finite included; new memory."""
    out = {}
    for name, entry in entries.items():
        x = tensors[name]
        out[name] = form(name, entry).codec.seen(name, x, seed) if x.numel() else x.detach().cpu().clone()
    return out


def body_bytes(spec: Spec, codec: str) -> int:
    """Bytes of the tensors alone in an update of this spec, at most.

    Exact in plain codecs if nothing in the spec is `at_most`; in others it depends on the numbers, and mostly is less.
    """
    type_of("float32", codec)  # also where there are no tensors
    total = 0
    for name, t in spec.items():
        _, most, least, exact = form(name, Entry(type_of(t.dtype, codec), t.shape))
        total += max(most, least) + (0 if exact else MAX_LENGTH)
    return total


def _read(name: str, entry: Entry, data: memoryview, look: Callable[[str, Tensor], None]) -> Tensor:
    if not math.prod(entry.shape):
        return torch.empty(entry.shape, dtype=_DTYPE.get(entry.type, torch.float32))
    out = form(name, entry).codec.unpack(name, entry.shape, data)
    if out.is_floating_point():
        look(name, out)
    return out


_DTYPE = {"int32": torch.int32, "uint16": torch.uint16, "numbers": torch.uint16}
