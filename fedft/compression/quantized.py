"""Integers times a step that a group of entries shares: int8 and int4.

A group is one index of the rank: a row of a matrix, a column of a `*.lora_B` (`rank_axis`). A vector is one group in
int8, and has one for every 256 entries in int4. What a selection keeps is one group in both.

    int8    scales (fp32) of the g groups, then round(x / scale), half to even, from -127 to 127: 4g bytes, then i8, or
            behind a selection symbols (`entropy_coder.py`). A scale is max|x| / 127, below 2^-107 it is sent as 0;
            |error| <= 0.501 max|x| / 127 over the group, 0 stays 0. Behind a selection it is the least step below
    int4    steps of the groups, then symbols
    steps   base i16 | width u8, at most 8 | a field t of so many bits for each group:
            0 nothing but zeros, 255 not finite, else the step is 2^((base - t + 1) / 4)

A step is the least of its form with |x| <= 127 steps and, for int4, step >= 0.42 of the group's root mean square: no
entry is cut, and the entropy coder is left with about 3.2 bits per entry.
"""

import math
import struct
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedft.compression import bit_packing, entropy_coder
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Codec, Part, Rounded, Rounding, Shape
from fedft.compression.plain import flat, load, store

Integers = NDArray[np.int32]
Groups = tuple[int, int]
VECTOR_BLOCK = 256  # entries of a vector that share a step
COARSE = 0.42
ZERO, NOT_FINITE = -(2**14), 2**14
_FOURTH_ROOTS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074290], np.float32)  # of 1, 2, 4, 8
_LEAST = -4 * 112  # smaller steps would leave products of few bits


def rank_axis(name: str) -> int:
    """The dimension of a matrix that is the rank, whose indices are the groups: 1 for a `*.lora_B`, else 0."""
    return 1 if name.endswith(".lora_B") else 0


def _groups(name: str, shape: Shape) -> Groups:
    """Shape of the steps beside a matrix; beside a vector, which is one row: one."""
    if len(shape) < 2:
        return 1, 1
    return (1, shape[1]) if rank_axis(name) else (shape[0], 1)


# int8


def _int8() -> Codec:
    def size(name: str, shape: Shape) -> int:
        return 4 * math.prod(_groups(name, shape)) + math.prod(shape)

    def rounded(name: str, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, integers as floats) of the tensor as a matrix."""
        x = tensor.detach().cpu().contiguous()
        rows = x.reshape(1, -1) if x.dim() < 2 else x
        scales = _scales(rows, _groups(name, tuple(x.shape)))
        return scales, (rows / torch.where(scales == 0, 1.0, scales)).round_().clamp_(-127, 127)

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        scales, q = rounded(name, tensor)
        return [store(flat(scales)), store(flat(q.to(torch.int8)))]

    def numbers(name: str, shape: Shape, scales: Tensor, q: Tensor) -> Tensor:
        rows = q.float().reshape(shape if len(shape) == 2 else (1, -1))
        return rows.mul_(scales.reshape(_groups(name, shape))).reshape(shape)

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader = Reader(data)
        scales = torch.from_numpy(load(reader.take(4 * math.prod(_groups(name, shape))), np.float32))
        q = torch.from_numpy(load(reader.take(math.prod(shape)), np.int8))
        reader.close()
        if int(q.min()) < -127:
            raise ValueError(f"expected int8 entries of {name!r} from -127 to 127, got -128")
        return numbers(name, shape, scales, q)

    def seen(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
        scales, q = rounded(name, tensor)
        return numbers(name, tuple(tensor.shape), scales, q.to(torch.int8))

    return Codec(
        "int8", 8.0, size, pack, unpack, seen, plain=True, idempotent=True, behind_selection=_one_group("int8", 6.5)
    )


def _scales(rows: Tensor, groups: Groups) -> Tensor:
    largest = rows.abs().amax(dim=[d for d in (0, 1) if groups[d] == 1], keepdim=True)
    s = largest / 127  # 127 * s, rounded, divided by 127 is s again: a test tries all 2^23 mantissas
    return torch.where(s < 2.0**-107, 0.0, s)  # smaller ones would lose bits to underflow


# int4, and both behind a selection


def _int4() -> Codec:
    def groups(name: str, shape: Shape) -> Groups:
        """Shape of the steps beside the entries as `_grid` lays them out."""
        return _groups(name, shape) if len(shape) == 2 else (-(-math.prod(shape) // VECTOR_BLOCK), 1)

    def rounded(name: str, tensor: Tensor) -> tuple[Integers, Integers]:
        shape = tuple(tensor.shape)
        return _quantised(_grid(flat(tensor), shape), groups(name, shape), COARSE)

    def numbers(q: Integers, quarters: Integers, shape: Shape) -> Tensor:
        with np.errstate(all="ignore"):  # what is not finite is for the receiver to refuse
            x = _grid(q.astype(np.float32), shape) * _step(quarters)
        return torch.from_numpy(x.reshape(-1)[: len(q)].reshape(shape))

    def size(name: str, shape: Shape) -> int:
        return 4 + math.prod(groups(name, shape)) + math.prod(shape)

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        q, quarters = rounded(name, tensor)
        return [_put_steps(quarters), entropy_coder.put_symbols(q[: tensor.numel()])]

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader = Reader(data)
        quarters = _get_steps(reader, groups(name, shape))
        q = entropy_coder.get_symbols(reader, math.prod(shape))
        reader.close()
        return numbers(q, quarters, shape)

    def seen(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
        q, quarters = rounded(name, tensor)
        return numbers(q[: tensor.numel()], quarters, tuple(tensor.shape))

    return Codec("int4", 3.4, size, pack, unpack, seen, coarse=True, behind_selection=_one_group("int4", 3.4, COARSE))


def _one_group(name: str, bits: float, coarse: float = 0.0) -> Rounding:
    """Numbers that share one step; the scale is the step in quarters of its binary logarithm, or for int8 the step."""

    def rounded(x: Floats) -> Rounded:
        q, quarters = _quantised(x.reshape(1, -1), (1, 1), coarse)
        return Rounded(q, quarters if coarse else _step(quarters))

    def floats(sent: Rounded) -> Floats:
        step = (_step(sent.scale) if coarse else sent.scale)[0, 0]
        with np.errstate(all="ignore"):
            numbers: Floats = sent.entries.astype(np.float32) * step
        return numbers

    def pack(sent: Rounded) -> list[Part]:
        head = _put_steps(sent.scale) if coarse else store(sent.scale.reshape(-1))
        return [head, entropy_coder.put_symbols(sent.entries)]

    def unpack(r: Reader, k: int) -> Rounded:
        scale = _get_steps(r, (1, 1)) if coarse else load(r.take(4), np.float32).reshape(1, 1)
        return Rounded(entropy_coder.get_symbols(r, k), scale)

    return Rounding(
        name, bits, lambda k: 5 + k, rounded, floats, pack, unpack, idempotent=not coarse, coarse=bool(coarse)
    )


def _grid(v: Any, shape: Shape) -> Any:
    """The entries in two dimensions, one of which runs through the groups; a vector's last block is filled with 0."""
    if len(shape) == 2:
        return v.reshape(shape)
    if len(v) <= VECTOR_BLOCK:
        return v.reshape(1, -1)
    return np.pad(v, (0, -len(v) % VECTOR_BLOCK)).reshape(-1, VECTOR_BLOCK)


def _quantised(x: Floats, groups: Groups, coarse: float) -> tuple[Integers, Integers]:
    """(integers of all entries, steps in quarters of their binary logarithm, shaped as `groups`)."""
    with np.errstate(all="ignore"):  # what is not finite is for the receiver to refuse
        quarters = _quarters(x, groups, coarse)
        step = _step(quarters)
        q = x * np.where(step > 0, 1 / step, np.float32(0))
        if (quarters == NOT_FINITE).any():
            q[np.isnan(q)] = 1  # of a step that is not finite any symbol but 0 comes out as NaN
        return np.rint(q, out=q).astype(np.int32).reshape(-1), quarters


def _quarters(x: Floats, groups: Groups, coarse: float) -> Integers:
    """Four times the binary logarithm of the groups' steps."""
    columns = groups == (1, x.shape[1])
    largest = (_largest_of_columns(x) if columns else np.maximum(x.max(1), -x.min(1))).astype(np.float64)
    least = largest / 127
    if coarse:
        squares = np.einsum("ij,ij->j" if columns else "ij,ij->i", x, x).astype(np.float64)
        mean = squares / x.shape[0 if columns else 1]
        least = np.maximum(least, coarse * np.minimum(largest, np.sqrt(mean)))
    quarters = np.ceil(4 * np.log2(least) - 1e-6)  # what was decoded finds the same step again
    finite = np.isfinite(largest)
    top = quarters[finite].max(initial=_LEAST)
    quarters = np.where(quarters >= max(_LEAST, top - 253), quarters, ZERO)
    return np.where(finite, quarters, NOT_FINITE).astype(np.int32).reshape(groups)


def _largest_of_columns(x: Floats) -> Floats:
    """max|x| by column; halving keeps the rows that numpy works on long, a reduction over many short ones is slow."""
    x = np.abs(x)
    while len(x) > 1:
        half = len(x) // 2
        top = np.maximum(x[:half], x[half : 2 * half])
        if len(x) % 2:
            np.maximum(top[0], x[-1], out=top[0])
        x = top
    return x[0]


def _step(quarters: Integers) -> Floats:
    with np.errstate(all="ignore"):  # 0 or infinite for the two that are none
        step: Floats = np.ldexp(_FOURTH_ROOTS[quarters & 3], quarters >> 2)
    step[quarters == ZERO] = 0
    step[quarters == NOT_FINITE] = np.nan
    return step


def _put_steps(quarters: Integers) -> bytes:
    flat = quarters.reshape(-1)
    base = int(np.where(flat == NOT_FINITE, ZERO, flat).max())
    base = 0 if base == ZERO else base
    t = np.where(flat == ZERO, 0, np.where(flat == NOT_FINITE, 255, base - flat + 1))
    width = int(t.max()).bit_length()
    return struct.pack("<hB", base, width) + bit_packing.put_fields(t, width)


def _get_steps(r: Reader, groups: tuple[int, int]) -> Integers:
    base, width = struct.unpack("<hB", r.take(3))
    if width > 8:
        raise ValueError(f"steps of {width} bits")
    t = bit_packing.get_fields(r, math.prod(groups), width)
    quarters = base - t + 1
    if not _LEAST <= base < 4 * 128 or int(quarters[(t > 0) & (t < 255)].min(initial=base)) < _LEAST:
        raise ValueError(f"expected steps from 2^{_LEAST // 4} to 2^127, got 2^({base}/4) and below")
    quarters[t == 0], quarters[t == 255] = ZERO, NOT_FINITE
    return quarters.reshape(groups)


INT8, INT4 = _int8(), _int4()
