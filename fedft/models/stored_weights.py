"""The identity of a checkpoint: a digest of its weights as their files hold them, whatever they are loaded as.

    before = stamps_of(files_of(folder))               which files transformers reads, and how they are told from others
    ...                                                the model is loaded: in half precision, in 4 bits, on any device
    digest = of_model(folder, before, model, drawn)    the same on all sites that have the checkpoint

A tensor counts by its name, dtype, shape and bytes in the files, used or not; so do weights that no file holds, since
they are drawn from the seed. Shards and file formats do not count, nor does under which of its names a tied tensor is
stored, or under how many. The hashes of a file's tensors are kept: `hashed_files`.
"""

import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.tensors_in_file import TensorsInFile, as_it_is
from fedft.errors import DataError
from fedft.models import hashed_files
from fedft.models.hashed_files import Hashed, Stamp
from fedft.models.parameters import parameters_of, shared_names

log = logging.getLogger(__name__)

FIRST = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""What transformers looks for, in its order."""
THREADS = 4  # hashing goes on beside reading; more of them wait for the disk
CHUNK = 2**22
FORM = b"fedft weights as stored, 1\n"


class Header(NamedTuple):
    """Where a tensor lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def files_of(folder: str) -> list[Path]:
    """The files of weights that transformers takes of a folder or a cached hub id; [] where there are none."""
    first = next((p for name in FIRST if (p := _file(folder, name)) is not None), None)
    if first is None or first.suffix != ".json":
        return [first] if first else []
    try:
        names = sorted({*json.loads(first.read_text(encoding="utf-8"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # transformers says what is wrong with it
    found = [_file(folder, str(name)) for name in names]
    return [p for p in found if p is not None] if None not in found else []


def _file(folder: str, name: str) -> Path | None:
    """The file of a name in a folder, or in the cache of a hub id."""
    if os.path.isdir(folder):
        return path if (path := Path(folder) / name).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(folder, name)
    return Path(found) if isinstance(found, str) else None


def stamps_of(files: Sequence[Path]) -> dict[Path, Stamp]:
    """What tells each file from what it was or will be; DataError where one is gone."""
    try:
        return {path: hashed_files.stamp(path) for path in files}
    except OSError as e:
        raise DataError(f"[model] id: {e.filename}: {e.strerror} while the model is loaded") from e


def of_model(folder: str, before: Mapping[Path, Stamp], model: nn.Module, drawn: Collection[str]) -> str:
    """The digest of a model that was loaded from a folder or a hub id.

    Args:
        folder: what transformers loaded.
        before: stamps of the folder's files before that; of a hub id they may have come with it.
        model: what was made of it; only its names count, and its drawn weights.
        drawn: names of parameters that no file holds.
    Raises:
        DataError: a file has changed since.
    """
    own = parameters_of(model)
    if files := before or stamps_of(files_of(folder)):
        one = {n: min(names, key=str.encode) for names in shared_names(model) for n in names}
        return digest_of(told(files), {n: own[n] for n in drawn}, one)
    log.warning("[model] id: the digest of %r is of its weights as loaded: where its files lie is not known", folder)
    return digest_of({}, own)


def told(before: Mapping[Path, Stamp]) -> dict[str, Hashed]:
    """Every tensor of these files by name. DataError where one is not the file any more that it was `before`."""
    found: dict[str, Hashed] = {}
    for path, stamp in before.items():
        lasting, tensors = hashed_files.lasting(stamp), hashed_files.known(path, stamp)
        hashed = tensors if tensors is not None else _hashed(path)
        if stamps_of([path])[path] != stamp:
            raise DataError(f"[model] id: {path} has changed while the model was loaded; start again")
        if tensors is None and lasting:
            hashed_files.keep(path, stamp, hashed)
        found |= hashed
    return found


def digest_of(stored: Mapping[str, Hashed], drawn: Tensors, one: Mapping[str, str] = MappingProxyType({})) -> str:
    """SHA-256, hexadecimal, of the tensors of a checkpoint by name, and of those that the seed has drawn beside them.

    `one` has, for each name of a tied tensor, the one under which it counts.
    """
    lines = {_line(one.get(n, n), x) for n, x in stored.items()}
    lines |= {b"drawn " + _line(n, of_tensor(x)) for n, x in drawn.items()}
    return hashlib.sha256(FORM + b"".join(sorted(lines))).hexdigest()


def on_top(below: str, tensors: Tensors) -> str:
    """The digest of a base with an adapter in its weights, of the base's digest and what the adapter brings by name."""
    lines = sorted(_line(n, of_tensor(x)) for n, x in tensors.items())
    return hashlib.sha256(FORM + below.encode() + b"\n" + b"".join(lines)).hexdigest()


def of_tensor(x: Tensor) -> Hashed:
    """The dtype, shape and hash of a tensor on any device."""
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return Hashed(str(x.dtype).removeprefix("torch."), tuple(x.shape), hashlib.sha256(data).hexdigest())


def _line(name: str, tensor: Hashed) -> bytes:
    return json.dumps([name, tensor.dtype, list(tensor.shape), tensor.sha256]).encode() + b"\n"


def _hashed(path: Path) -> dict[str, Hashed]:
    """The tensors of a file; those of safetensors are hashed as they lie there, several at a time."""
    if path.suffix != ".safetensors":
        return _pickled(path)
    headers = header_of(path)

    def one(header: Header) -> Hashed:
        h, left = hashlib.sha256(), header.end - header.begin
        with path.open("rb", buffering=0) as f:
            f.seek(header.begin)
            while left and (data := f.read(min(CHUNK, left))):
                h.update(data)
                left -= len(data)
        if left:
            raise DataError(f"[model] id: {path} ends early; is it still being written?")
        return Hashed(header.dtype, header.shape, h.hexdigest())

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(headers, pool.map(one, headers.values()), strict=True))


def in_files(paths: Iterable[Path]) -> dict[str, Tensors]:
    """The file that holds each tensor of these files, by the tensor's name; none of a file of another form."""
    found: dict[str, Tensors] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            headers = {
                n: h for n, h in header_of(path).items() if isinstance(getattr(torch, h.dtype, None), torch.dtype)
            }
            places = {n: as_it_is(getattr(torch, h.dtype), h.shape, h.begin) for n, h in headers.items()}
            there = TensorsInFile(path, places)
            found |= dict.fromkeys(headers, there)
    return found


def header_of(path: Path) -> dict[str, Header]:
    """Where each tensor of a safetensors file lies. DataError for another file."""
    try:
        with path.open("rb") as f:
            size = int.from_bytes(f.read(8), "little")
            said: dict[str, Any] = json.loads(f.read(size)) if size < path.stat().st_size else {}
        said.pop("__metadata__", None)
        return {n: _header(x, 8 + size) for n, x in said.items()}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"[model] id: {path} is no safetensors file") from e


def _header(said: Mapping[str, Any], start: int) -> Header:
    begin, end = said["data_offsets"]
    dtype = DTYPES.get(said["dtype"], said["dtype"])
    return Header(dtype, tuple(map(int, said["shape"])), start + int(begin), start + int(end))


DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"} | {
    f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)
}
"""torch's names of safetensors' dtypes: a file of either kind has the same digest. Others count by safetensors' own."""


def _pickled(path: Path) -> dict[str, Hashed]:
    """The tensors of a file that torch saved, read as transformers reads it: without running what is in it."""
    from transformers.modeling_utils import load_state_dict

    found: dict[str, Any] = load_state_dict(str(path), map_location="cpu", weights_only=True)
    tensors = {n: x for n, x in found.items() if isinstance(x, Tensor)}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(tensors, pool.map(of_tensor, tensors.values()), strict=True))
