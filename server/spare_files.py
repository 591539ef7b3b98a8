"""Files of a simulation's journal that are done with, kept to be written over: their pages are in memory already.

A new file of some megabytes costs nearly as much for its pages as for its bytes. What somebody else may still read is
let go as ever: a file that a backup holds, or that has a second name.
"""

from dataclasses import dataclass, field
from pathlib import Path

from fedft.backups import held_files

LARGE = 2**20  # bytes of a file: a smaller one is made as fast
MOST = 2**28  # bytes of all that are kept


@dataclass
class SpareFiles:
    """Up to MOST bytes of files in `folder`, which is there while they are."""

    folder: Path
    _files: list[tuple[Path, int]] = field(default_factory=list)
    """With their bytes."""
    _count: int = 0
    """Of all that were ever kept: no two share a name."""

    def put(self, file: Path) -> None:
        """Take a file away from its place: it is kept to be written over, or gone."""
        about = file.stat()
        kept = sum(size for _, size in self._files) + about.st_size
        if about.st_size < LARGE or kept > MOST or about.st_nlink > 1 or held_files.is_held(file):
            file.unlink()
            return
        self.folder.mkdir(exist_ok=True)
        self._count += 1
        self._files.append((file.rename(self.folder / str(self._count)), about.st_size))

    def take(self) -> Path | None:
        """A file to be written over, which is the caller's then; None where there is none."""
        while self._files:
            if (file := self._files.pop()[0]).exists():
                return file
        return None

    def drop(self) -> None:
        """Delete all, also those that are left of a process that was killed."""
        self._files = []
        if self.folder.is_dir():
            for file in self.folder.iterdir():
                file.unlink()
            self.folder.rmdir()
