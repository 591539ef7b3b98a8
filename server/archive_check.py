"""What an archive is worth: whether it is whole, and that its rounds lead from state to state.

verify(run_folder)                      Archived(...), or BrokenArchive with the line or the file that is not right
replayed(path, recipe, layout, state)   the state after the round, computed anew: the same bytes
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fedft.contract import Layout, State
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.security import chained_lines
from fedft.security.chained_lines import DIGEST, BrokenChain
from fedft.server.archive import FOLDER, INDEX, LINK, blocks
from fedft.server.guard import Guard, Sum, Unguarded
from fedft.update import Plan, Update
from fedft.wire import messages

FILE = re.compile(r"round-\d{8}(-\d{1,9})?\.fedft")
KEYS = {"round", "file", "bytes", "sha256", "before", "after", "at", "last"}
PIECE = 2**20


class Archived(NamedTuple):
    """An archive that is as it was written."""

    rounds: int
    last: str
    """SHA-256 of the index's last line, to be noted elsewhere; of 64 zeros where there is none."""
    bytes: int
    missing: list[int]
    """Rounds between the first and the last that were not archived: the key was off."""
    again: list[int]
    """Rounds that stand here more than once: they were done again from a state that was restored."""
    strays: list[str]
    """Files without a line: a crash came between the two, and the round is written once more."""
    torn: int
    """Bytes of a last line that a crash cut off."""


class BrokenArchive(Exception):
    """An archive that is not as it was written; the text names the line or the file, and what is wrong."""


def verify(run: Path) -> Archived:
    """The archive of a run folder, every byte of it read.

    Raises BrokenArchive at the first line or file that is not as it was written, ConfigError where there is none.
    """
    folder = run / FOLDER
    path = folder / INDEX
    if not path.exists():
        raise ConfigError(f"{run}: holds no archive; [server] archive = true keeps one")
    lines, torn = chained_lines.read(path, "an archive's index")
    rounds, size, ends, named = list[int](), 0, dict[int, set[str]](), set[str]()
    try:
        for entry in chained_lines.checked(path, lines, _fault, LINK):
            k = entry["round"]
            if k - 1 in ends and entry["before"] not in ends[k - 1]:
                where = f"{path}, line {len(rounds) + 1}"
                raise BrokenArchive(f"{where}: round {k} begins at another state than round {k - 1} led to")
            _check_file(folder / entry["file"], entry)
            rounds.append(k)
            named.add(entry["file"])
            ends.setdefault(k, set()).add(entry["after"])
            size += entry["bytes"]
    except BrokenChain as e:
        raise BrokenArchive(str(e)) from None
    between = range(min(rounds), max(rounds)) if rounds else range(0)
    strays = sorted(p.name for p in folder.iterdir() if FILE.fullmatch(p.name) and p.name not in named)
    again = sorted({k for k in rounds if rounds.count(k) > 1})
    last = chained_lines.digest_of(lines)
    return Archived(len(rounds), last, size, [k for k in between if k not in ends], again, strays, torn)


def _fault(entry: Any) -> str:
    """What is wrong with the object of a line of an index; "" if nothing is."""
    if not isinstance(entry, dict) or entry.keys() != KEYS:
        return f"wanted an object with {', '.join(sorted(KEYS))}"
    for name in ("round", "bytes"):
        if type(entry[name]) is not int or entry[name] < 0:
            return f"{name} is {entry[name]!r:.80}"
    for name in ("sha256", "before", "after"):
        if not (isinstance(entry[name], str) and DIGEST.fullmatch(entry[name])):
            return f"{name} is {entry[name]!r:.80}"
    if not (isinstance(entry["file"], str) and FILE.fullmatch(entry["file"])):
        return f"file is {entry['file']!r:.80}"
    return ""


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as f:
            while piece := f.read(PIECE):
                digest.update(piece)
                size += len(piece)
    except OSError as e:
        raise BrokenArchive(f"{path}: cannot be read: {e.strerror}") from e
    if (size, digest.hexdigest()) != (entry["bytes"], entry["sha256"]):
        raise BrokenArchive(f"{path}: not as it was written: {size} bytes, {entry['bytes']} in the index, or changed")
    try:
        said = next(blocks(path)).said
    except (ValueError, LookupError, TypeError, StopIteration) as e:
        raise BrokenArchive(f"{path}: {e}") from e
    if any(said.get(k) != entry[k] for k in ("round", "before", "after")):
        raise BrokenArchive(f"{path}: is of another round than its line in the index")


def replayed(path: Path, recipe: Recipe, layout: Layout, state: State, guard: Guard | None = None) -> State:
    """The state after an archived round, computed anew from the state before it: the bytes that were committed.

    Equal bytes on the type of machine that the run had, and where no gate of the run gave another state than the
    aggregate's.

    Args:
        path: the round's file, which `verify` found whole.
        recipe: of the run.
        layout: of the run's base model.
        state: before the round; its digest is the round's `before`.
        guard: how the run summed updates, as `RobustSum(config)` of its config; None: as the recipe does.
    Raises:
        ValueError: the state is another, or the file is not in the format. RejectedUpdate: a message in it is not.
    """
    facts = next(blocks(path)).said
    if state.digest != facts["before"]:
        raise ValueError(f"{path}: begins at state {facts['before'][:12]}, got {state.digest[:12]}")
    plans: dict[str, Plan] = {}

    def updates() -> Iterator[Update]:
        for said, data in islice(blocks(path), 1, None):
            if said["what"] == "plan":
                plans[said["client"]] = messages.decode_plan(data, max_bytes=len(data))
                continue
            client = said["client"]
            update = messages.decode_update(data, recipe.spec(layout, plans[client]), facts["codec"])
            yield replace(update, client=client, roster=facts["roster"], num_examples=facts["weights"][client])

    of = Sum(recipe, layout, state, list(facts["weights"]), facts["weights"], plans, updates)
    return recipe.next_state(state, (guard or Unguarded()).sum(of).change)
