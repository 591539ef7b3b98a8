"""Named tensors that stay in their file: each is read when it is asked for, and nothing of them is held in between.

    x = TensorsInFile(path, places)      the file stays open, also where its name goes to another one, or to none
    x["w"]                               a new tensor, from the bytes that lie at its place

What one walks through name by name is so in memory one tensor at a time. The system keeps what was read of a file as
long as it has room: a read is then a copy.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor

from fedft.errors import DataError


class Place(NamedTuple):
    """Where the entries of a tensor lie in a file: row-major, little endian, one after the other."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Bytes from the file's beginning."""


class TensorsInFile(Mapping[str, Tensor]):
    """A mapping of names to tensors of a file; whoever holds it can read them, whatever becomes of the file's name."""

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        """Open the file `path`, which nobody writes to any more; OSError where it cannot be opened."""
        self._path, self._places, self._lock = path, dict(places), Lock()
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, closed with the last who can read it
        finalize(self, self._file.close)
        self._stamp = self._stamped()

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in new memory. Raises DataError where the file was written to since it was opened."""
        dtype, shape, begin = self._places[name]
        found = torch.empty(shape, dtype=dtype)
        raw = found.view(-1).view(torch.uint8) if found.numel() else torch.empty(0, dtype=torch.uint8)
        room = memoryview(raw.numpy())
        with self._lock:
            self._file.seek(begin)
            while room and (count := self._file.readinto(room)):
                room = room[count:]
            if room or self._stamped() != self._stamp:
                raise DataError(f"{self._path}: was written to while its tensors were in use; start again")
        if sys.byteorder == "big":
            raw.copy_(raw.view(-1, dtype.itemsize).flip(1).view(-1))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and other processes: the tensors themselves."""
        return dict, (dict(self),)

    def _stamped(self) -> tuple[int, int]:
        """What is another where somebody has written to the file."""
        said = os.fstat(self._file.fileno())
        return said.st_size, said.st_mtime_ns
