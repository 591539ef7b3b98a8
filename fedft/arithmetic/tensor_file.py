"""The bytes of a safetensors file in parts that share the tensors' memory: no second copy of them is made.

    u64 length of the header | header: JSON, padded with spaces to 8 bytes | the tensors' bytes, one after the other

Little endian. Tensors of wide entries come first, then by name, as the library's own writer has them, which makes the
whole file in memory, twice.
"""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from io import FileIO
from tempfile import TemporaryFile
from typing import BinaryIO, cast

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.tensors_in_file import LARGE, Place, TensorsInFile, as_it_is

log = logging.getLogger(__name__)

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
ALIGNED = 8  # bytes: where the first tensor begins


def parts(tensors: Tensors, metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file of these tensors with texts by name beside them, in parts; `safetensors.torch.load` reads it.

    Args:
        tensors: on any device, of any shape; not modified, and not to be changed until the last part is used.
        metadata: texts by name.
    Raises:
        KeyError: for a dtype that the format has no name for.
    """
    order = sorted(tensors, key=lambda n: (-tensors[n].element_size(), n.encode()))
    said: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        t = tensors[name]
        said[name] = {"dtype": DTYPES[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    header = json.dumps(said, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % ALIGNED)
    yield len(header).to_bytes(8, "little") + header
    yield from (_bytes(tensors[name]) for name in order if tensors[name].numel())


def places(file: BinaryIO | FileIO, at: int) -> dict[str, Place]:
    """Where each tensor of an open file lies that has what `parts` made from the byte `at` on."""
    file.seek(at)
    size = int.from_bytes(file.read(8), "little")
    said = json.loads(file.read(size))
    said.pop("__metadata__", None)
    dtypes, start = {name: dtype for dtype, name in DTYPES.items()}, at + 8 + size
    return {n: as_it_is(dtypes[t["dtype"]], tuple(t["shape"]), start + t["data_offsets"][0]) for n, t in said.items()}


def aside(tensors: Tensors) -> Tensors:
    """The same tensors, read from now on from a temporary file without a name, which goes with whoever has them.

    It lies where Python's `tempfile` puts files (TMPDIR). Tensors that are not LARGE, or for which there is no room,
    are given back as they are.
    """
    if sum(x.nbytes for x in tensors.values()) < LARGE:
        return tensors
    try:
        file = cast(FileIO, TemporaryFile(prefix="fedft-", buffering=0))  # noqa: SIM115, open as long as it is read
        for part in parts(tensors, {}):
            left = memoryview(part)
            while left:
                left = left[file.write(left) :]
    except OSError as e:
        log.info("%s: what waits stays in memory", e)
        return tensors
    return TensorsInFile(file, places(file, 0))


def _bytes(t: Tensor) -> memoryview:
    """The entries of a tensor, row-major and little endian; a view of the memory of one that is so already."""
    entries = t.detach().cpu().contiguous().reshape(-1)
    raw = entries.view(torch.uint8).numpy()
    if sys.byteorder == "big":
        raw = raw.reshape(-1, t.element_size())[:, ::-1].reshape(-1)
    return raw.data
