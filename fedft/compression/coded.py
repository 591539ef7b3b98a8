"""A float tensor in a codec that selects, rounds coarsely or makes integers: first numbers, then their bytes.

    sent = take("q.lora_A", tensor, parse("topk:0.1 | int4"), seed)     what is sent of it, as numbers
    sent.tensor()                                                       what the other side sees
    read("q.lora_A", shape, codec, memoryview(write(sent)))             the same numbers, at the other side

Of n > 0 entries (`entropy_coder.py` has the forms of supports, fields and symbols):

    selection     topk, ternary   support of the k entries sent; what was rounded to 0 is not sent
                  randk           seed u64; k = ceil(Q n) entries, see `selection.drawn`
                  none            all entries, k = n
    values        fp32, bf16      k numbers
                  fp16            for k > 0: exponent i8, then k numbers, as in a plain fp16 tensor
                  ternary         for k > 0: scale bf16, the mean magnitude; then k bits, 1 for minus
                  int8, int4      steps, then k symbols
                  fixed           k fields of BITS bits: round(x 2^(BITS-1) / CLIP) + 2^(BITS-1), or 0 for not finite
    steps         base i16 | width u8, at most 8 | a field t of so many bits for each group:
                  0 nothing but zeros, 255 not finite, else the step is 2^((base - t + 1) / 4)
    filling       zeros, so that there is a byte for 256 entries

A selection is one group. Without one a group is an index of the rank, as in plain int8, or 256 entries of a vector.
Its step is the least of its form with |x| <= 127 steps and, for int4, step >= 0.42 of the group's root mean square: no
entry is cut, and the entropy coder is left with about 3.2 bits per entry.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedft.compression import bit_packing, entropy_coder, top_k
from fedft.compression.bit_packing import Reader
from fedft.compression.codec import Codec

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]
ENTRIES_PER_BYTE = 256  # so that a short message cannot ask for much memory
BLOCK = 256
COARSE = 0.42
ZERO, NOT_FINITE = -(2**14), 2**14
_FOURTH_ROOTS = np.array([1.0, 1.1892071150027210, 1.4142135623730951, 1.6817928305074290], np.float32)  # of 1, 2, 4, 8
_LEAST = -4 * 112  # smaller steps would leave products of few bits


@dataclass(frozen=True)
class Sent:
    """The numbers that both sides will know of one tensor."""

    name: str
    shape: tuple[int, ...]
    codec: Codec
    seed: int
    index: NDArray[np.int64] | None
    """Places of what is sent, ascending; None: all."""
    values: Any
    """By place: integers for int8, int4 and fixed, signs for ternary, bits for bf16, else floats."""
    scale: Any
    """fp16: the exponent; ternary: the magnitude's bits; int8, int4: four times the binary logarithm of each step."""

    def tensor(self) -> Tensor:
        """As the other side sees it: float32, new memory."""
        n = math.prod(self.shape)
        with np.errstate(all="ignore"):  # what is not finite is for the receiver to refuse
            v = _seen(self)
            if self.codec.selection == "randk":
                v = v * np.float32(n / len(v))
        if self.index is not None:
            out = np.zeros(n, np.float32)
            out[self.index] = v
            v = out
        return torch.from_numpy(v.reshape(self.shape))


def take(name: str, tensor: Tensor, codec: Codec, seed: int = 0) -> Sent:
    """What is sent of a tensor that has entries, whatever they are; randk draws by `seed` (64 bits)."""
    x = tensor.detach().cpu().contiguous().numpy().reshape(-1)
    shape, index = tuple(tensor.shape), None
    if codec.selection == "randk":
        index = top_k.drawn(seed, name, len(x), codec.kept(len(x)))
    elif _sparse(codec):
        index = top_k.largest(x, codec.kept(len(x)))
    with np.errstate(all="ignore"):  # as in `tensor`
        values, scale = _rounded(x if index is None else x[index], name, shape, codec)
    if index is not None and _sparse(codec):
        sent = (values & 0x7FFF if codec.values == "bf16" else values) != 0  # NaN is sent, -0 is not
        if not sent.all():
            index, values = index[sent], values[sent]
    return Sent(name, shape, codec, seed if codec.selection == "randk" else 0, index, values, scale)


def write(sent: Sent) -> bytes:
    """The bytes of what is sent."""
    parts = []
    n = math.prod(sent.shape)
    if sent.index is not None:
        parts.append(entropy_coder.put_support(sent.index, n) if _sparse(sent.codec) else struct.pack("<Q", sent.seed))
    parts += _written(sent)
    missing = -(-n // ENTRIES_PER_BYTE) - sum(len(p) for p in parts)
    return b"".join([*parts, bytes(max(0, missing))])


def read(name: str, shape: tuple[int, ...], codec: Codec, data: memoryview) -> Sent:
    """What was sent of a tensor with entries. Raises ValueError for bytes that are not in the format."""
    n, r, seed, index = math.prod(shape), Reader(data), 0, None
    if n > ENTRIES_PER_BYTE * len(data):
        raise ValueError(f"{n} entries of {name!r} in {len(data)} bytes")
    if _sparse(codec):
        index = entropy_coder.get_support(r, n, codec.kept(n))
    elif codec.selection:
        (seed,) = struct.unpack("<Q", r.take(8))
        index = top_k.drawn(seed, name, n, codec.kept(n))
    values, scale = _read(r, n if index is None else len(index), name, shape, codec)
    if len(r.left) and (len(data) > -(-n // ENTRIES_PER_BYTE) or any(r.left)):
        raise ValueError(f"{len(r.left)} bytes too many for {name!r}")
    return Sent(name, shape, codec, seed, index, values, scale)


def most_bytes(name: str, shape: tuple[int, ...], codec: Codec) -> int:
    """A bound on what `write` makes of a tensor of this shape."""
    n = math.prod(shape)
    k = codec.kept(n)
    support = (n + 7) // 8 + 6 if _sparse(codec) else 8 if codec.selection else 0
    per_value = {"fp32": 32, "fp16": 16, "bf16": 16, "ternary": 1, "fixed": codec.bits}.get(codec.values, 8)
    steps = 3 + math.prod(_groups(name, shape, codec)) if codec.values in ("int8", "int4") else 2
    return max(support + steps + 1 + (k * per_value + 7) // 8, -(-n // ENTRIES_PER_BYTE))


def _sparse(codec: Codec) -> bool:
    """Zeros are not sent, so which entries are sent is."""
    return codec.selection == "topk" or (codec.values == "ternary" and not codec.selection)


# Values: rounding, what the other side sees of it, bytes and back


def _rounded(v: Floats, name: str, shape: tuple[int, ...], codec: Codec) -> tuple[Any, Any]:
    """(values, scale) of `Sent`."""
    match codec.values:
        case "bf16":
            return torch.from_numpy(v).bfloat16().view(torch.int16).numpy(), None
        case "fp16":
            k = exponent(torch.from_numpy(v)) if len(v) else 0
            return (v * np.float32(2.0**-k)).astype(np.float16), k
        case "ternary":
            magnitude = torch.tensor(np.abs(v).mean(dtype=np.float64) if len(v) else 0.0).bfloat16()
            sign = np.copysign(np.float32(1), v) if magnitude != 0 else np.zeros_like(v)
            return sign, int(magnitude.view(torch.int16)) & 0xFFFF
        case "fixed":
            return to_fixed(torch.from_numpy(v), codec).numpy(), None
        case "int8" | "int4":
            return _quantised(v, name, shape, codec)
    return v, None


def _seen(s: Sent) -> Floats:
    """The values as numbers again."""
    match s.codec.values:
        case "bf16":
            return torch.from_numpy(s.values).view(torch.bfloat16).float().numpy()
        case "fp16":
            return s.values.astype(np.float32) * np.float32(2.0**s.scale)
        case "ternary":
            return s.values * np.array([s.scale << 16], np.uint32).view(np.float32)
        case "fixed":
            return from_fixed(torch.from_numpy(s.values), s.codec).numpy()
        case "int8" | "int4":
            x = _grid(s.values.astype(np.float32), s.shape, s.codec) * _step(s.scale)
            return x.reshape(-1)[: len(s.values)]
    return s.values.copy()


def _written(s: Sent) -> list[bytes]:
    v, k = s.values, len(s.values)
    match s.codec.values:
        case "bf16":
            return [v.astype("<i2").tobytes()]
        case "fp16":
            return [struct.pack("<b", s.scale), v.astype("<f2").tobytes()] if k else []
        case "ternary":
            return [struct.pack("<H", s.scale), bit_packing.put_bits(v < 0)] if k else []
        case "fixed":
            return [bit_packing.put_fields(v + (1 << (s.codec.bits - 1)), s.codec.bits)]
        case "int8" | "int4":
            return [_put_steps(s.scale), entropy_coder.put_symbols(v)]
    return [v.astype("<f4").tobytes()]


def _read(r: Reader, k: int, name: str, shape: tuple[int, ...], codec: Codec) -> tuple[Any, Any]:
    match codec.values:
        case "bf16":
            return np.frombuffer(r.take(2 * k), "<i2").astype(np.int16), None
        case "fp16":
            e = struct.unpack("<b", r.take(1))[0] if k else 0
            return np.frombuffer(r.take(2 * k), "<f2").astype(np.float16), e
        case "ternary":
            scale = struct.unpack("<H", r.take(2))[0] if k else 0
            if scale > 0x7FFF:
                raise ValueError("a magnitude is below 0")
            return 1 - 2 * bit_packing.get_bits(r, k).astype(np.float32), scale
        case "fixed":
            return bit_packing.get_fields(r, k, codec.bits) - (1 << (codec.bits - 1)), None
        case "int8" | "int4":
            steps = _get_steps(r, _groups(name, shape, codec))
            return entropy_coder.get_symbols(r, k), steps
    return np.frombuffer(r.take(4 * k), "<f4").astype(np.float32), None


def exponent(x: Tensor) -> int:
    """Least k with max|x| / 2^k, rounded to fp16, finite; it is the same for what comes out at the other end."""
    largest = max(abs(float(v)) for v in torch.aminmax(x))
    if not math.isfinite(largest):
        return 0
    m, e = math.frexp(largest)
    e += m >= 1 - 2**-12  # rounds up to the next power of two at fp16's 11 bits
    return max(e - 16, -125)  # below -125 fp16's smallest step would leave float32


# Fixed point: integers that may be added over clients modulo 2^32


def to_fixed(x: Tensor, codec: Codec) -> Tensor:
    """Integers on `codec`'s scale, as int32; what is not finite becomes -2^(BITS-1), which no number does."""
    half = 1 << (codec.bits - 1)
    q = (x.detach().double() * (half / codec.clip)).round_().clamp_(1 - half, half - 1)
    return torch.where(torch.isfinite(x), q, -half).to(torch.int32)


def from_fixed(q: Tensor, codec: Codec) -> Tensor:
    """The numbers that one tensor's integers stand for, as float32; NaN where `to_fixed` met one.

    For sums over clients `q * (CLIP / 2^(BITS-1))` is all there is to it.
    """
    half = 1 << (codec.bits - 1)
    return torch.where(q == -half, math.nan, q.double() * (codec.clip / half)).float()


# Groups and their steps


def _groups(name: str, shape: tuple[int, ...], codec: Codec) -> tuple[int, int]:
    """Shape of the steps beside the entries as `_grid` lays them out."""
    if codec.selection:
        return 1, 1
    if len(shape) < 2:
        return -(-math.prod(shape) // BLOCK), 1
    return (1, shape[1]) if name.endswith(".lora_B") else (shape[0], 1)


def _grid(v: Any, shape: tuple[int, ...], codec: Codec) -> Any:
    """The entries in two dimensions, one of which runs through the groups; a vector's last block is filled with 0."""
    if codec.selection:
        return v.reshape(1, -1)
    if len(shape) == 2:
        return v.reshape(shape)
    return v.reshape(1, -1) if len(v) <= BLOCK else np.pad(v, (0, -len(v) % BLOCK)).reshape(-1, BLOCK)


def _quantised(v: Floats, name: str, shape: tuple[int, ...], codec: Codec) -> tuple[Integers, Integers]:
    if not len(v):
        return np.zeros(0, np.int32), np.full((1, 1), ZERO, np.int32)
    x = _grid(v, shape, codec)
    quarters = _quarters(x, _groups(name, shape, codec), codec)
    step = _step(quarters)
    q = x * np.where(step > 0, 1 / step, np.float32(0))
    if (quarters == NOT_FINITE).any():
        q[np.isnan(q)] = 1  # any symbol but 0 comes out as NaN
    return np.rint(q, out=q).astype(np.int32).reshape(-1)[: len(v)], quarters


def _quarters(x: Floats, groups: tuple[int, int], codec: Codec) -> Integers:
    """Four times the binary logarithm of the groups' steps."""
    columns = groups == (1, x.shape[1])
    largest = (_largest_of_columns(x) if columns else np.maximum(x.max(1), -x.min(1))).astype(np.float64)
    least = largest / 127
    if codec.values == "int4":
        squares = np.einsum("ij,ij->j" if columns else "ij,ij->i", x, x).astype(np.float64)
        mean = squares / x.shape[0 if columns else 1]
        least = np.maximum(least, COARSE * np.minimum(largest, np.sqrt(mean)))
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
    step: Floats = np.ldexp(_FOURTH_ROOTS[quarters & 3], quarters >> 2)  # 0 or infinite for the two that are none
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
