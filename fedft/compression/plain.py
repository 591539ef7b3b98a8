"""How one tensor is written on the wire: wire types, sizes, bytes. The docstring of `fedft.wire.messages` is the
format.

    entry = Entry(type_of("float32", "int8"), (8, 64))
    data = b"".join(pack("q.lora_A", entry, tensor))           at most size("q.lora_A", entry) bytes
    unpack("q.lora_A", entry, memoryview(data))                the tensor as the other side sees it

The name counts: it says which dimension of a matrix is the rank, along which int8 keeps its scales.
"""

import math
import struct
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedft import check
from fedft.compression import bit_packing, coded, entropy_coder
from fedft.compression.codec import Codec, parse

DTYPES = {torch.float32: "float32", torch.int32: "int32", torch.uint16: "uint16"}
MAX_EMPTY_DIMENSION = 2**20  # beside a zero no bytes back a dimension's size, so it has a bound of its own
NUMBERS = "numbers"  # uint16 in as few bytes as may be
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
    if dtype == "float32":
        return parse(codec).name
    return NUMBERS if dtype == "uint16" and not parse(codec).plain else dtype


def has_length(entry: Entry) -> bool:
    """The tensor's bytes do not follow from its type and shape: their number stands before them, as a varint."""
    return entry.type not in _ITEM_BYTES and math.prod(entry.shape) > 0


@lru_cache(maxsize=8192)  # asked for every tensor of every letter
def size(name: str, entry: Entry) -> int:
    """Bytes of the tensor, at most, without those of its length. Raises ValueError for what has no place in the format.

    Exact unless the tensor `has_length`.
    """
    codec = _codec(entry.type)
    if len(entry.shape) > 2 or not (codec or entry.type in _ITEM_BYTES or entry.type == NUMBERS):
        raise ValueError(f"tensor {name!r} is {entry}, wanted at most 2 dimensions of {', '.join(_ITEM_BYTES)}, ...")
    n = math.prod(entry.shape)
    if not n and max(entry.shape) > MAX_EMPTY_DIMENSION:
        raise ValueError(f"tensor {name!r} is {entry}: empty, with a dimension above {MAX_EMPTY_DIMENSION}")
    if codec and n:
        return coded.most_bytes(name, entry.shape, codec)
    if entry.type == NUMBERS:
        return 1 + 2 * n if n else 0
    extra = {"fp16": 1, "int8": 4 * math.prod(_groups(name, entry.shape))}.get(entry.type, 0)
    return n * _ITEM_BYTES.get(entry.type, 0) + extra if n else 0


@lru_cache(maxsize=64)
def _codec(kind: str) -> Codec | None:
    """The codec of a float tensor's wire type, unless the type is plain or not a float's."""
    if kind in _ITEM_BYTES or kind == NUMBERS:
        return None
    try:
        codec = parse(kind)
    except ValueError:
        return None
    return codec if codec.name == kind else None


def _groups(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales beside the tensor seen as a matrix: one per index of the rank."""
    if len(shape) < 2:
        return 1, 1
    return (1, shape[1]) if name.endswith(".lora_B") else (shape[0], 1)


def pack(name: str, entry: Entry, tensor: Tensor, seed: int = 0) -> list[bytes | memoryview]:
    """The bytes of `tensor`, which is as `entry` says, in parts; a part may share its memory.

    Args:
        seed: of what the codec draws at random.
    """
    x = tensor.detach().cpu().contiguous()
    if not x.numel():
        return []
    if codec := _codec(entry.type):
        return [coded.write(coded.take(name, x, codec, seed))]
    if entry.type == NUMBERS:
        return [entropy_coder.put_numbers(x.numpy().reshape(-1))]
    if entry.type == "fp16":
        k = coded.exponent(x)
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
    """The tensor in `data`, which has the size that `entry` implies, if it implies one."""
    kind, shape = entry
    if data and (codec := _codec(kind)):
        return coded.read(name, shape, codec, data).tensor()
    if data and kind == NUMBERS:
        numbers = bit_packing.Reader(data)
        out = entropy_coder.get_numbers(numbers, math.prod(shape))
        numbers.close()
        return torch.from_numpy(out.astype(np.uint16)).reshape(shape)
    dtype = {"int32": torch.int32, "uint16": torch.uint16, NUMBERS: torch.uint16}.get(kind, torch.float32)
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


def seen(name: str, entry: Entry, tensor: Tensor, seed: int = 0) -> Tensor:
    """`tensor` as the other side will see it; new memory. Leaves out what only makes bytes of numbers and back."""
    if tensor.numel() and (codec := _codec(entry.type)):
        return coded.take(name, tensor, codec, seed).tensor()
    if entry.type in DTYPES.values() or entry.type == NUMBERS:
        return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return unpack(name, entry, memoryview(b"".join(pack(name, entry, tensor))))


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
