"""How one tensor is written on the wire: wire types, sizes, bytes. The docstring of `codec.py` is the format.

    entry = Entry(type_of("float32", "int8"), (8, 64))
    data = b"".join(pack("q.lora_A", entry, tensor))           size("q.lora_A", entry) bytes
    unpack("q.lora_A", entry, memoryview(data))                the tensor as the other side sees it

The name counts: it says which dimension of a matrix is the rank, along which int8 keeps its scales.
"""

import math
import struct
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedft import check

DTYPES = {torch.float32: "float32", torch.int32: "int32", torch.uint16: "uint16"}
MAX_EMPTY_DIMENSION = 2**20  # beside a zero no bytes back a dimension's size, so it has a bound of its own
_ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int32": 4, "uint16": 2}


class Entry(NamedTuple):
    """What a message's table says of one tensor."""

    type: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type}{list(self.shape[:8])}"


def type_of(dtype: str, codec: str) -> str:
    """The wire type of a tensor of `dtype` in a message of `codec`."""
    check.one_of(DTYPES.values(), dtype=dtype)
    return codec if dtype == "float32" else dtype


def size(name: str, entry: Entry) -> int:
    """Bytes of the tensor. Raises ValueError for what has no place in the format."""
    if len(entry.shape) > 2 or entry.type not in _ITEM_BYTES:
        raise ValueError(f"tensor {name!r} is {entry}, wanted at most 2 dimensions of {', '.join(_ITEM_BYTES)}")
    n = math.prod(entry.shape)
    if not n and max(entry.shape) > MAX_EMPTY_DIMENSION:
        raise ValueError(f"tensor {name!r} is {entry}: empty, with a dimension above {MAX_EMPTY_DIMENSION}")
    extra = {"fp16": 1, "int8": 4 * math.prod(_groups(name, entry.shape))}.get(entry.type, 0)
    return n * _ITEM_BYTES[entry.type] + extra if n else 0


def _groups(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales beside the tensor seen as a matrix: one per index of the rank."""
    if len(shape) < 2:
        return 1, 1
    return (1, shape[1]) if name.endswith(".lora_B") else (shape[0], 1)


def pack(name: str, entry: Entry, tensor: Tensor) -> list[bytes | memoryview]:
    """The bytes of `tensor`, which is as `entry` says, in parts; a part may share its memory."""
    x = tensor.detach().cpu().contiguous()
    if not x.numel():
        return []
    if entry.type == "fp16":
        k = _exponent(x)
        return [struct.pack("<b", k), _store((x * 2.0**-k).half())]
    if entry.type == "bf16":
        return [_store(x.bfloat16().view(torch.int16))]
    if entry.type == "int8":
        rows = x.reshape(1, -1) if x.dim() < 2 else x
        scales = _scales(rows, _groups(name, entry.shape))
        q = (rows / torch.where(scales == 0, 1.0, scales)).round_().clamp_(-127, 127)
        return [_store(scales), _store(q.to(torch.int8))]
    return [_store(x)]


def unpack(name: str, entry: Entry, data: memoryview) -> Tensor:
    """The tensor in `data`, which has the size that `entry` implies."""
    kind, shape = entry
    dtype = {"int32": torch.int32, "uint16": torch.uint16}.get(kind, torch.float32)
    if not data or kind == "fp32" or dtype != torch.float32:
        return _load(data, dtype).reshape(shape)
    if kind == "fp16":
        return _load(data[1:], torch.float16).float().mul_(2.0 ** struct.unpack_from("<b", data)[0]).reshape(shape)
    if kind == "bf16":
        return _load(data, torch.int16).view(torch.bfloat16).float().reshape(shape)
    groups = _groups(name, shape)
    split = 4 * math.prod(groups)
    q = _load(data[split:], torch.int8)
    if int(q.min()) < -127:
        raise ValueError(f"expected int8 entries of {name!r} from -127 to 127, got -128")
    rows = q.float().reshape(shape if len(shape) == 2 else (1, -1))
    return rows.mul_(_load(data[:split], torch.float32).reshape(groups)).reshape(shape)


def _exponent(x: Tensor) -> int:
    """Least k with max|x| / 2^k, rounded to fp16, finite; it is the same for what comes out at the other end."""
    largest = max(abs(float(v)) for v in torch.aminmax(x))
    if not math.isfinite(largest):
        return 0
    m, e = math.frexp(largest)
    e += m >= 1 - 2**-12  # rounds up to the next power of two at fp16's 11 bits
    return max(e - 16, -125)  # below -125 fp16's smallest step would leave float32


def _scales(rows: Tensor, groups: tuple[int, int]) -> Tensor:
    largest = rows.abs().amax(dim=[d for d in (0, 1) if groups[d] == 1], keepdim=True)
    s = largest / 127  # 127 * s, rounded, divided by 127 is s again: a test tries all 2^23 mantissas
    return torch.where(s < 2.0**-107, 0.0, s)  # smaller ones would lose bits to underflow


def _store(x: Tensor) -> memoryview:
    """The entries' bytes, little endian, without a copy where the machine is."""
    a = x.numpy().reshape(-1)
    return a.astype(a.dtype.newbyteorder("<"), copy=False).view(np.uint8).data


def _load(data: memoryview, dtype: torch.dtype) -> Tensor:
    """A flat tensor that owns its memory: the one copy of its bytes."""
    out = torch.empty(len(data) // dtype.itemsize, dtype=dtype)
    if data:
        a = out.numpy()
        a[:] = np.frombuffer(data, a.dtype.newbyteorder("<"))
    return out
