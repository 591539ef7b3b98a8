"""A run's model/ as a zip, made while it is sent: nothing of it is in memory or on disk at once."""

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 16


def chunks(folder: Path) -> Iterator[bytes]:
    """The zip of the regular files in `folder`, under the folder's name, in pieces; links are left out, see `files`.

    Weights hardly get smaller, so they are stored as they are. Raises OSError for a file that cannot be read.
    """
    out = _Pieces()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as made:
        for path in files(folder):
            name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
            about = zipfile.ZipInfo.from_file(path, name, strict_timestamps=False)
            with open(path, "rb") as f, made.open(about, "w", force_zip64=True) as into:
                while piece := f.read(CHUNK_BYTES):
                    into.write(piece)
                    yield from out.taken()
    yield from out.taken()


def files(folder: Path) -> list[Path]:
    """The regular files under `folder`, in order; a link might lead out of the run, and is none."""
    return sorted(p for p in folder.rglob("*") if stat.S_ISREG(p.lstat().st_mode))


class _Pieces:
    """As much of a file as `zipfile` needs to write one that cannot be sought in."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """The end of the zip is the end of the pieces."""

    def taken(self) -> Iterator[bytes]:
        """What was written since the last time."""
        pieces, self._pieces = self._pieces, []
        yield from pieces
