"""Codecs that keep every entry at its place as a number of its own: fp32, fp16, bf16; integers as they are.

    fp32   4n      exact
    bf16   2n      rounded half to even; |error| <= 2^-8 |x| + 2^-134
    fp16   1 + 2n  exponent k (i8), then x / 2^k as fp16; k is the least for which the largest entry does not overflow,
                   and at least -125; |error| <= 2^-11 |x| + 2^-40 max|x| + 2^-150

They write a vector: all entries of a tensor (`whole`), or those that a selection keeps.
"""

import math
import struct
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from fedft.compression import entropy_coder
from fedft.compression.bit_packing import Floats, Reader
from fedft.compression.codec import Codec, Part, Rounded, Rounding, Shape


def whole(r: Rounding) -> Codec:
    """The codec that rounds all entries of a tensor as one vector, in row-major order."""
    if not r.has_zero:
        raise ValueError(f"{r.name} has no zero; wanted a rounding that keeps zeros, or 'topk:1 | {r.name}'")

    def size(name: str, shape: Shape) -> int:
        return r.size(math.prod(shape))

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        return r.pack(r.round(flat(tensor)))

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader = Reader(data)
        sent = r.unpack(reader, math.prod(shape))
        reader.close()
        return torch.from_numpy(r.floats(sent).reshape(shape))

    def seen(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
        x = flat(tensor)
        found = r.floats(r.round(x))
        return torch.from_numpy(found.copy() if np.may_share_memory(found, x) else found).reshape(tensor.shape)

    return Codec(
        r.name, r.bits_per_parameter, size, pack, unpack, seen,
        plain=r.plain, linear=r.linear, exact=r.exact, unbiased=r.exact, ring_summable=r.ring_summable,
        idempotent=r.idempotent, coarse=r.coarse, behind_selection=None if r.ring_summable else r,
    )  # fmt: skip


# Numbers as bytes


def flat(tensor: Tensor) -> Any:
    """A tensor's entries as a numpy array of one dimension, row-major; shares memory with a contiguous tensor."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy().reshape(-1))  # one column of many is a view with gaps


def store(a: NDArray[Any]) -> memoryview:
    """The bytes of an array's entries, little endian, without a copy where the machine is little endian."""
    if sys.byteorder == "big":
        a = a.byteswap()
    return a.view(np.uint8).data


def load(data: memoryview, kind: DTypeLike) -> NDArray[Any]:
    """The vector of dtype `kind` in little-endian bytes, in memory of its own: the one copy that is made of them."""
    out = torch.empty(len(data), dtype=torch.uint8).numpy()
    out[:] = np.frombuffer(data, np.uint8)
    found = out.view(kind)
    return found.byteswap() if sys.byteorder == "big" else found


def _fp32() -> Rounding:
    return Rounding(
        "fp32", 32.0,
        size=lambda k: 4 * k,
        round=lambda x: Rounded(x),
        floats=lambda sent: sent.entries,
        pack=lambda sent: [store(sent.entries)],
        unpack=lambda r, k: Rounded(load(r.take(4 * k), np.float32)),
        plain=True, linear=True, exact=True, idempotent=True,
    )  # fmt: skip


def _bf16() -> Rounding:
    """Entries are bits, as int16."""
    return Rounding(
        "bf16", 16.0,
        size=lambda k: 2 * k,
        round=lambda x: Rounded(torch.from_numpy(x).bfloat16().view(torch.int16).numpy()),
        floats=lambda sent: torch.from_numpy(sent.entries).view(torch.bfloat16).float().numpy(),
        pack=lambda sent: [store(sent.entries)],
        unpack=lambda r, k: Rounded(load(r.take(2 * k), np.int16)),
        is_zero=lambda entries: entries & 0x7FFF == 0,
        plain=True, linear=True, idempotent=True,
    )  # fmt: skip


def _fp16() -> Rounding:
    """Entries are halves; the scale is the exponent."""

    def rounded(x: Floats) -> Rounded:
        numbers = torch.from_numpy(x)
        k = exponent(numbers)
        return Rounded((numbers * 2.0**-k).half().numpy(), k)

    def unpack(r: Reader, k: int) -> Rounded:
        (scale,) = struct.unpack("<b", r.take(1))
        return Rounded(load(r.take(2 * k), np.float16), scale)

    return Rounding(
        "fp16", 16.0,
        size=lambda k: 1 + 2 * k,
        round=rounded,
        floats=lambda sent: torch.from_numpy(sent.entries).float().mul_(2.0**sent.scale).numpy(),
        pack=lambda sent: [struct.pack("<b", sent.scale), store(sent.entries)],
        unpack=unpack,
        plain=True, linear=True, idempotent=True,
    )  # fmt: skip


def exponent(x: Tensor) -> int:
    """Least k with max|x| / 2^k, rounded to fp16, finite; it is the same for what comes out at the other end."""
    largest = max(abs(float(v)) for v in torch.aminmax(x))
    if not math.isfinite(largest):
        return 0
    m, e = math.frexp(largest)
    e += m >= 1 - 2**-12  # rounds up to the next power of two at fp16's 11 bits
    return max(e - 16, -125)  # below -125 fp16's smallest step would leave float32


FP32, FP16, BF16 = whole(_fp32()), whole(_fp16()), whole(_bf16())


# Integers, which have no codec to choose: wire types of tensors that are not floats


def _integers(name: str) -> Codec:
    """Entries of an integer type, as they are."""
    kind = np.dtype(name)

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader = Reader(data)
        found = load(reader.take(kind.itemsize * math.prod(shape)), kind)
        reader.close()
        return torch.from_numpy(found).reshape(shape)

    return Codec(
        name, 8.0 * kind.itemsize,
        size=lambda name, shape: kind.itemsize * math.prod(shape),
        pack=_stored,
        unpack=unpack,
        seen=_copied,
        plain=True, exact=True, idempotent=True,
    )  # fmt: skip


def _numbers() -> Codec:
    """uint16 in as few bytes as may be, see `entropy_coder`."""

    def pack(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
        return [entropy_coder.put_numbers(flat(tensor))]

    def unpack(name: str, shape: Shape, data: memoryview) -> Tensor:
        reader = Reader(data)
        found = entropy_coder.get_numbers(reader, math.prod(shape))
        reader.close()
        return torch.from_numpy(found.astype(np.uint16)).reshape(shape)

    return Codec(
        "numbers", 16.0,
        size=lambda name, shape: 1 + 2 * math.prod(shape),
        pack=pack,
        unpack=unpack,
        seen=_copied,
        exact=True, idempotent=True,
    )  # fmt: skip


def _stored(name: str, tensor: Tensor, seed: int = 0) -> list[Part]:
    return [store(flat(tensor))]


def _copied(name: str, tensor: Tensor, seed: int = 0) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


INT32, UINT16, NUMBERS = _integers("int32"), _integers("uint16"), _numbers()
