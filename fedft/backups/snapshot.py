"""What of a run's folder, or of a site's state folder, belongs into a backup: as it is on disk at one moment.

    run     the newest generation of the state that verifies, its history, the open round's journal, salt, config.toml,
            metrics, audit, and what else lies flat in the folder; the archive of past rounds, if it keeps one; not the
            number of the last attempt, see `archive.restore`
    site    all that is in its state folder, but for the keys of its noise and its one-time secrets of secure sums

A folder that is in use changes. Files that are written whole are opened and then kept, whatever takes their place, and
held, so that nobody writes over them; what is only added to ends at its last whole line. If the state changed
meanwhile, everything is looked at again.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedft import durable
from fedft.backups import held_files
from fedft.backups.archive import CHUNK, MAX_NAME, NAME, Kind, Part
from fedft.durable import DIGEST_BYTES
from fedft.errors import ConfigError, StateDamaged

log = logging.getLogger(__name__)

TRIES, AGAIN_S = 5, 0.2
GENERATION = re.compile(r"gen-(\d{8})\.fedft")
ARCHIVE, INDEX = "archive", "index.jsonl"  # as `fedft.server.archive` writes them
LIVE = {"lock", "admin.sock", "status.json", "contact", "backup.json"}
"""Names of files that say something about a process, or would say it about another backup."""
SECRET = "privacy.key"
"""Of a site's noise: who has it subtracts the noise. A site that is restored makes a new one, and pays for a turn."""
ONE_TIME = ("secagg-", "integers-")
"""How a site's files of secure sums begin, see `fedft.client.secure_sums`: one that came back would have forgotten
which masks were used, and two vectors under one mask tell their difference. A site without waits for the next block."""
SITES = ("sent.jsonl", "state.fedft", "answer.fedft", "kept")
"""What shows that a folder is a site's state."""


@dataclass(frozen=True)
class Snapshot:
    """The files of a folder, held open, and the names of what is left out."""

    kind: Kind
    parts: list[Part]
    left_out: list[str]
    """What somebody may miss, with a slash behind folders."""


def kind_of(folder: Path) -> Kind:
    """Whether a folder is a run's or a site's state. Raises ConfigError where it is neither."""
    if (folder / "config.toml").is_file() and (folder / "state").is_dir():
        return "run"
    if folder.is_dir() and any((folder / name).exists() for name in SITES):
        return "site"
    raise ConfigError(f"{folder}: neither a run folder (config.toml, state/) nor a site's state folder (sent.jsonl)")


@contextmanager
def taken(folder: Path) -> Iterator[Snapshot]:
    """The folder's files, open inside the block.

    Raises ConfigError for a folder of neither kind or a name that no backup may have, StateDamaged for a run without a
    generation that verifies.
    """
    kind = kind_of(folder)
    for tried in range(1, TRIES + 1):
        with ExitStack() as files:
            try:
                before = _stamps(folder, kind)
                found = _run(folder, files) if kind == "run" else _site(folder, files)
                whole = _stamps(folder, kind) == before
            except FileNotFoundError:  # it was replaced between two looks
                found, whole = None, False
            if found is not None and (whole or (tried == TRIES and kind == "site")):
                if not whole:
                    log.warning("%s: changes all the time; take another backup when the site is quiet", folder)
                yield found
                return
        time.sleep(AGAIN_S)
    raise ConfigError(f"{folder}: changes all the time; try again")


def _run(folder: Path, files: ExitStack) -> Snapshot:
    state = folder / "state"
    number, generation = _newest(state, files)
    parts: list[Part] = [generation]
    left: list[str] = []
    journal = state / "journal" / f"{number:08d}"
    inside = [*(journal.iterdir() if journal.is_dir() else ()), *state.iterdir()]
    for path in sorted(inside):
        other = GENERATION.fullmatch(path.name) or path.suffix == ".damaged" or path.name == "attempt"
        if not other and not (path.is_dir() and path.name == "journal"):
            _add(path, folder, files, parts, left)
    for path in sorted(folder.iterdir()):
        if path.name not in ("state", ARCHIVE):
            _add(path, folder, files, parts, left)
    _add_archive(folder, files, parts, left)
    return Snapshot("run", parts, left)


def _add_archive(folder: Path, files: ExitStack, parts: list[Part], left: list[str]) -> None:
    """The index first: what it names is there, and stays as it is."""
    inside = folder / ARCHIVE
    if inside.is_symlink() or not (inside / INDEX).is_file():
        return
    _add(inside / INDEX, folder, files, parts, left)
    for path in sorted(inside.glob("round-*.fedft")):
        parts.append(Part(path.relative_to(folder).as_posix(), path, path.stat().st_size))


def _site(folder: Path, files: ExitStack) -> Snapshot:
    parts: list[Part] = []
    left: list[str] = []
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() or path.is_symlink():
            _add(path, folder, files, parts, left)
    return Snapshot("site", parts, left)


def _add(path: Path, folder: Path, files: ExitStack, parts: list[Part], left: list[str]) -> None:
    """Open a file of `folder`; what is no file, or somebody's own folder, is only named."""
    name = path.relative_to(folder).as_posix()
    if path.name in LIVE or path.name.startswith(".") or path.suffix in (".tmp", ".lock"):
        return
    if path.name == SECRET or path.name.startswith(ONE_TIME) or path.is_symlink() or not path.is_file():
        left.append(name + "/" * path.is_dir())
        return
    if not NAME.fullmatch(name) or len(name) > MAX_NAME:
        left.append(name)
        return
    file = files.enter_context(path.open("rb"))
    held_files.hold(file)
    parts.append(Part(name, file, _whole_lines(file) if path.suffix == ".jsonl" else file.seek(0, 2)))


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = at = file.seek(0, 2)
    while at > 0:
        at = max(0, at - CHUNK)
        file.seek(at)
        if (last := file.read(min(CHUNK, end - at)).rfind(b"\n")) >= 0:
            return at + last + 1
    return 0


def _newest(state: Path, files: ExitStack) -> tuple[int, Part]:
    """Number and file of the newest generation that verifies."""
    numbers = sorted((int(m[1]) for p in state.iterdir() if (m := GENERATION.fullmatch(p.name))), reverse=True)
    for number in numbers:
        name = f"gen-{number:08d}.fedft"
        file = files.enter_context((state / name).open("rb"))
        wanted, digest = file.read(DIGEST_BYTES), hashlib.sha256()
        while data := file.read(CHUNK):
            digest.update(data)
        if digest.digest() == wanted and _has_its_history(state, file):
            return number, Part(f"state/{name}", file, file.tell())
        log.warning("%s: does not verify, or what it names does not, and is left out", state / name)
    raise StateDamaged(f"{state}: no generation of the state verifies; there is nothing to back up")


def _has_its_history(state: Path, generation: BinaryIO) -> bool:
    """Whether `state/history` is whole as far as a whole generation names it; most name none."""
    generation.seek(DIGEST_BYTES)
    head = generation.read(8)
    meta = durable.metadata(head + generation.read(int.from_bytes(head, "little")))
    generation.seek(0, 2)
    if "history" not in meta:
        return True
    said = json.loads(meta["history"])
    return durable.beginning(state / "history", int(said["bytes"]), str(said["sha256"])) is not None


def _stamps(folder: Path, kind: Kind) -> Collection[tuple[str, int, int]]:
    """What changes with the state: name, time and size of its files, but for those that only grow."""
    root = folder / "state" if kind == "run" else folder
    found = [p for p in root.rglob("*") if p.is_file() and p.suffix not in (".jsonl", ".tmp") and p.name not in LIVE]
    return {(p.as_posix(), s.st_mtime_ns, s.st_size) for p in found for s in [p.stat()]}
