"""Named tensors that stay in their file: each is read when it is asked for, and nothing of them is held in between.

    x = TensorsInFile(path, places)      the file stays open, also where its name goes to another one, or to none
    x["w"]                               a new tensor, from the bytes that lie at its place

What one walks through name by name is so in memory one tensor at a time. The system keeps what was read of a file as
long as it has room: a read is then a copy.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import FileIO
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Apart, Digested
from fedft.errors import DataError

LARGE = 2**25
"""Bytes of tensors from which they are left in their file where they have one: to hold fewer costs little."""


class Place(NamedTuple):
    """Where a tensor lies in a file."""

    begin: int
    """Bytes from the file's beginning."""
    size: int
    """Bytes that are read."""
    made: Callable[[Tensor], Tensor]
    """(these bytes, uint8 [size], in new memory) -> the tensor, which may be in that memory."""


def as_it_is(dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Place:
    """The place of a tensor whose entries lie in the file one after the other, row-major and little endian."""
    return Place(begin, prod(shape) * dtype.itemsize, partial(_as_it_is, dtype, shape))


def _as_it_is(dtype: torch.dtype, shape: tuple[int, ...], raw: Tensor) -> Tensor:
    if sys.byteorder == "big":
        raw = raw.view(-1, dtype.itemsize).flip(1).view(-1)
    return raw.view(dtype).view(shape)


class TensorsInFile(Apart):
    """A mapping of names to tensors of a file, which nobody writes to any more."""

    def __init__(self, path: Path | FileIO, places: Mapping[str, Place], *, stays_open: bool = True) -> None:
        """Open the file; OSError where that is not possible.

        Args:
            path: of the file; or the file, open, which nobody else reads: it needs no name.
            places: of the tensors, by name.
            stays_open: whether the file can be read whatever becomes of its name; else it is opened for each tensor,
                so that a process may have any number of them.
        """
        self._places, self._lock = dict(places), Lock()
        file = path if isinstance(path, FileIO) else FileIO(path)
        self._path, self._stamp = Path(str(file.name)), _stamp(file)
        self._file = file if stays_open else None
        finalize(self, file.close) if stays_open else file.close()

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in new memory. Raises DataError where the file is gone, or was written to since."""
        begin, size, made = self._places[name]
        raw = torch.empty(size, dtype=torch.uint8)
        try:
            if self._file is not None:
                with self._lock:
                    self._read(self._file, begin, raw)
            else:
                with FileIO(self._path) as file:
                    self._read(file, begin, raw)
        except OSError as e:
            raise DataError(f"{self._path}: cannot be read any more: {e.strerror}; start again") from e
        return made(raw)

    def _read(self, file: FileIO, begin: int, raw: Tensor) -> None:
        """Fill `raw` with the bytes of the file from `begin` on."""
        file.seek(begin)
        room = raw.numpy().data
        while room and (count := file.readinto(room)):
            room = room[count:]
        if room or _stamp(file) != self._stamp:
            raise DataError(f"{self._path}: was written to while its tensors were in use; start again")

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: the tensors themselves."""
        return dict, (dict(self),)


class DigestedInFile(TensorsInFile, Digested):
    """Tensors of a file whose digest is known: of those that a state was saved with, and is made of since."""

    def __init__(self, path: Path, places: Mapping[str, Place], digest: str) -> None:
        """`digest`: of the tensors, as `tensors.digest` gives it."""
        super().__init__(path, places)
        self._digest = digest

    def digest(self) -> str:
        """As `tensors.digest` of a plain mapping."""
        return self._digest


def _stamp(file: FileIO) -> tuple[int, int, int]:
    """What is another of another file, and where somebody has written to the file."""
    said = os.fstat(file.fileno())
    return said.st_ino, said.st_size, said.st_mtime_ns
