"""The run's durable memory: generations of the state, and a journal of admitted updates.

    state/gen-00000003.fedft         SHA-256 of the rest, then a safetensors body: the shared tensors as
                                     "/<name>", the server's own as "<owner>/<name>"; version, notes, format; of a
                                     state that only grows, how much of state/history its shared tensors are, instead
    state/history                    the rounds of such a state, see `fedft.histories.history_file`
    state/written-by                 the fedft and the format that wrote here last, in words
    state/journal/00000003/plans     SHA-256 of the rest, then JSON: client -> its encoded plan, hexadecimal
    state/journal/00000003/members   SHA-256 of the rest, then JSON: who takes part, where that changed with the round
    state/journal/00000003/<client>  SHA-256 of the rest, then the admitted bytes as they came
    state/journal/spare/<number>     in a simulation, files that were <client> once and are yet to be written over
    state/attempt                    SHA-256 of the rest, then the number of the last attempt at a round, in decimal

Every file is written aside, fsynced, renamed and its folder fsynced before anything is acknowledged. In a simulation
only generations are: what a crash of the machine, not of the process, takes of the rest is clients' work that they do
again. Starting is always recovery: the newest generation that verifies is the state; a damaged one is put aside and the
one before is used.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from fedft import durable
from fedft.arithmetic import tensor_file, tensors
from fedft.arithmetic.tensors import Tensors
from fedft.contract import State
from fedft.errors import OtherVersion, RunPaused, StateDamaged, in_one_line
from fedft.histories.history_file import HistoryFile, Mark
from fedft.histories.rounds import History
from fedft.server import buffered
from fedft.server.archive import Archive
from fedft.server.attempt_numbers import AttemptNumbers
from fedft.server.kept_generations import KEEP_LAST, kept
from fedft.server.spare_files import SpareFiles
from fedft.server.state_in_file import resting

log = logging.getLogger(__name__)

FORMAT = 1  # of generations, their notes and the journal; one without a number is of the first
WITH_HISTORY = 2  # the same with shared tensors that stand in state/history: 0.1.0 would not miss them


class Store:
    """Generations and journal of one run under `folder`, which is made. Used by one thread of one process.

    A method that writes returns once what it wrote is durable, and raises RunPaused if the disk does not take it; the
    run then goes on from what was durable before. `journal` may be called from a second thread during an exchange.
    """

    def __init__(self, folder: Path, archive: Archive | None = None, *, sync_all: bool = True) -> None:
        """Make the folder, or take up what is there.

        Args:
            folder: of the run's state.
            archive: takes each round whose state is committed, before its journal is dropped; None: nothing does.
            sync_all: whether all that is written waits for the disk; else only generations do, see above.
        """
        self._folder, self._archive, self._sync_all = folder, archive, sync_all
        self._commit = partial(durable.commit, sync=sync_all)
        self._journal = folder / "journal"
        self._history = HistoryFile(folder / "history")
        self._saved: tuple[int, str] | None = None
        """Version and digest of what this process saved last, for the archive."""
        self._begun_from: list[Collection[int]] = []
        """Versions that turns began from which go on behind each of the last generations."""
        self._attempts = AttemptNumbers(folder / "attempt", self._commit)
        self.pinned: int | None = None
        """Version of a state that stays, however old it is."""
        self._spare = SpareFiles(self._journal / "spare")
        self._journal.mkdir(parents=True, exist_ok=True)

    @property
    def folder(self) -> Path:
        """Where the state is, and what else must be as durable."""
        return self._folder

    def save(self, state: State, notes: Mapping[str, Any]) -> None:
        """Commit a state with its notes (plain JSON), then drop journals of earlier rounds, and old generations.

        Durable when it returns. A run that is killed before that finds the generation before it and the whole journal.
        """
        mark = self._history.add(state.tensors) if isinstance(state.tensors, History) else None
        form = FORMAT if mark is None else WITH_HISTORY
        durable.mark(self._folder, form)
        meta = {"version": str(state.version), "notes": json.dumps(notes), "format": str(form)}
        shared = state.tensors if mark is None else {}
        if mark is not None:
            meta["history"] = json.dumps(mark.said)
        durable.commit(self._path(state.version), *tensor_file.parts(tensors.in_one({"": shared, **state.own}), meta))
        if mark is not None:
            self._history.keep(mark)
        self._keep_round(state, notes)
        self._saved = (state.version, state.digest) if self._archive else None
        # only rounds that are over: what a crash of the machine may show of them is too late for any other
        self._keep_journal(range(state.version, 2**63), Path.unlink if self._sync_all else self._spare.put)
        self._begun_from = [*self._begun_from, buffered.begun_from(notes)][-KEEP_LAST:]
        for v in self._versions():
            if v != self.pinned and not kept(v, state.version) and not any(v in begun for begun in self._begun_from):
                self._path(v).unlink()

    def state(self, version: int) -> State | None:
        """The state of a version that a turn which is not over began from; None if there is none that verifies."""
        if (read := self._read(version)) is None:
            return None
        return resting(read[0], self._path(version))

    def resting(self, state: State) -> State:
        """The state, which was saved, with its tensors read from its file where they are large."""
        return resting(state, self._path(state.version))

    def latest(self, *, recover: bool = True) -> tuple[State, dict[str, Any]] | None:
        """The newest state that verifies, with its notes; None if there never was one.

        `recover` puts damaged files aside and drops what follows from them: for the one process that runs the run.
        Raises StateDamaged if there are generations and none verifies, and OtherVersion, with all files as they were,
        if the newest that verifies is not in the form that this version writes.
        """
        if recover:
            self._spare.drop()
        versions = self._versions()
        for v in reversed(versions):
            if (read := self._read(v)) is not None:
                state, notes, mark = read
                if mark is not None:
                    self._history.keep(mark)
                if recover:
                    self._begun_from = [buffered.begun_from(notes)]
                    self._keep_round(state, notes)  # a crash may have come before that
                    self._keep_journal(range(v + 1))  # later updates were trained from a state that is no more
                    state = resting(state, self._path(v))
                return state, notes
            if recover:
                log.warning("%s does not verify, or what it names does not, and is put aside", self._path(v))
                self._path(v).rename(self._path(v).with_suffix(".damaged"))
        if versions or any(self._folder.glob("*.damaged")):
            raise StateDamaged(f"{self._folder}: no generation verifies; the files are kept as *.damaged")
        return None

    def _read(self, version: int) -> tuple[State, dict[str, Any], Mark | None] | None:
        """The state and the notes of a generation, and how far its history goes; None if none is there and whole."""
        if (body := durable.verified(self._path(version))) is None:
            return None
        try:
            meta = durable.metadata(body)
            if (form := meta.get("format", "1")) not in (str(FORMAT), str(WITH_HISTORY)):
                raise ValueError(f"format {form:.20}, this one reads {FORMAT} and {WITH_HISTORY}")
            own = tensors.drawers_of(load_tensors(body))
            shared: tuple[Tensors, Mark | None] | None = own.pop("", {}), None
            if "history" in meta:
                shared = self._history.read(json.loads(meta["history"]))
            if shared is None:
                return None
            return State(int(meta["version"]), shared[0], own), json.loads(meta["notes"]), shared[1]
        except (SafetensorError, KeyError, ValueError, TypeError) as e:
            by = durable.written_by(self._folder) or "of before versions were noted"
            raise OtherVersion(
                f"{self._path(version)}: written by another version of fedft ({by}: {in_one_line(e)}); go on, measure "
                "and export with that version; nothing was changed"
            ) from e

    def next_attempt(self) -> int:
        """A number greater than any given before in this run, durable when returned: no two attempts share one."""
        return self._attempts.next(begun=self._versions() not in ([], [0]))

    def jump(self) -> bool:
        """Have the next attempt's number lie far beyond those given, see `AttemptNumbers.jump`."""
        return self._attempts.jump()

    def check_room(self) -> None:
        """Raise RunPaused if the disk has no room for two more generations: better before a round than in it."""
        versions = self._versions()
        need = 2 * self._path(versions[-1]).stat().st_size if versions else 0
        need += self._history.room + (self._archive.room if self._archive else 0)
        if (free := shutil.disk_usage(self._folder).free) < need:
            raise RunPaused(f"{self._folder}: {free} bytes free, a round needs {need}; make room and resume")

    def keep_plans(self, round: int, plans: Mapping[str, bytes]) -> None:
        """Make the encoded plans of a round durable, by client; called before any of them is sent."""
        body = json.dumps({client: data.hex() for client, data in plans.items()})
        self._commit(self._journal / f"{round:08d}" / "plans", body.encode())

    def plans(self, round: int) -> dict[str, bytes]:
        """The encoded plans of a round by client; {} if there are none that verify."""
        body = durable.verified(self._journal / f"{round:08d}" / "plans")
        return {} if body is None else {c: bytes.fromhex(data) for c, data in json.loads(body).items()}

    def keep_members(self, round: int, members: Mapping[str, Any]) -> None:
        """Make the membership of a round durable (plain JSON); called before anybody in it is asked."""
        self._commit(self._journal / f"{round:08d}" / "members", json.dumps(members).encode())

    def members(self, round: int) -> dict[str, Any] | None:
        """The membership that was kept for a round; None if there is none that verifies."""
        body = durable.verified(self._journal / f"{round:08d}" / "members")
        return None if body is None else json.loads(body)

    def journal(self, round: int, client: str, payload: bytes, sha256: str = "") -> None:
        """Make an admitted update durable, in the bytes that came: from then on it counts, whatever happens.

        `sha256` are its 64 hexadecimal digits, where they are known; else it is computed.
        """
        path, known = self._journal / f"{round:08d}" / _file(client), bytes.fromhex(sha256) or None
        self._commit(path, payload, sha256=known, over=self._spare.take())

    def read(self, round: int, client: str) -> bytes | None:
        """The bytes of a client's admitted update in a round, or None if there are none that verify."""
        return durable.verified(self._journal / f"{round:08d}" / _file(client))

    def digest(self, round: int, client: str) -> str:
        """SHA-256, 64 hexadecimal digits, of a client's admitted update in a round; it was journalled."""
        with open(self._journal / f"{round:08d}" / _file(client), "rb") as f:
            return f.read(durable.DIGEST_BYTES).hex()

    def journalled(self, round: int, client: str) -> Path | None:
        """The file of a client's admitted update in a round, or None if there is none that verifies."""
        return path if durable.stands(path := self._journal / f"{round:08d}" / _file(client)) else None

    def drop(self, round: int) -> None:
        """Drop the plans and admitted updates of this round and of later ones."""
        self._keep_journal(range(round))

    def close(self) -> None:
        """Delete what was only kept to be written over: nothing more is journalled."""
        self._spare.drop()

    def _keep_round(self, state: State, notes: Mapping[str, Any]) -> None:
        """Have the archive take the round that led to a state that is committed, if it has not, from the journal."""
        number = state.version - 1
        if self._archive is None or number < 0 or self._archive.holds(number, state.digest):
            return
        weights, before = notes.get("record", {}).get("weights", {}), self._saved
        if (before is None or before[0] != number) and (read := self._read(number)) is not None:
            before = number, read[0].digest
        updates = ((c, self.read(number, c)) for c in weights)
        whole = before is not None and before[0] == number and all(data is not None for _, data in updates)
        if not whole or before is None or not weights or "roster" not in notes:
            log.warning("round %d is not archived: its journal is not there any more", number)
            return
        facts = {"run": notes["run"], "round": number, "before": before[1], "after": state.digest,
                 "roster": notes["roster"], "weights": weights}  # fmt: skip
        self._archive.add(facts, self.plans(number), ((c, self.read(number, c) or b"") for c in weights))

    def _keep_journal(self, rounds: range, let_go: Callable[[Path], None] = Path.unlink) -> None:
        for entry in self._journal.iterdir():
            if entry.name.isdecimal() and int(entry.name) not in rounds:
                for f in entry.iterdir():
                    let_go(f)
                entry.rmdir()

    def _path(self, version: int) -> Path:
        return self._folder / f"gen-{version:08d}.fedft"

    def _versions(self) -> list[int]:
        found = (re.fullmatch(r"gen-(\d{8})\.fedft", p.name) for p in self._folder.iterdir())
        return sorted(int(m[1]) for m in found if m)


def _file(client: str) -> str:
    """A file name of fixed length for any name of the roster, also where case or dots do not count."""
    return "u-" + hashlib.blake2b(client.encode(), digest_size=16).hexdigest()
