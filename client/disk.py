"""A site's files: for each run the state it holds and the answer it sent last; and the record of all that it has sent.

    state-<run>.fedft                         or two others, see `state_files`
    answer-<run>.fedft                        see `received_state`
    kept/<run>/                               see `private_state`
    sent.jsonl                                see `sent_records`

A site of an earlier version knew one run: its state.fedft, answer.fedft and kept/kept-*.fedft are taken over.
"""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

from fedft import durable
from fedft.arithmetic import tensors
from fedft.client import noise_key
from fedft.client.sent_records import FILE, SentRecords
from fedft.client.state_files import StateFiles
from fedft.contract import State, Turn
from fedft.errors import OtherVersion
from fedft.update import BLOCK, RUNS_AT_ONCE, SLOT, Plan

log = logging.getLogger(__name__)

FORMAT = 1  # of state, answer, record and what is kept
RUN = re.compile(r"[0-9a-f]{16}")
PLAN = ("rank", "ranks", "learning_rate", "counted")
"""What a plan says beside its state that decides how the model stands at it."""


@dataclass(frozen=True)
class Asked:
    """The request that a kept answer belongs to, and the work that was done for it."""

    run: str
    round: int
    attempt: int
    plan: str
    """SHA-256 of the plan's payload, hexadecimal."""
    work: str = ""
    """A digest that two requests share exactly if their answers differ in the attempt's number only."""


class SiteDisk:
    """A site's files in `folder`, which is made if missing; see the module's docstring.

    A file of a state or an answer whose SHA-256 is wrong counts as absent. Any thread may read, one writes.
    Raises OtherVersion for a folder that a fedft of a later format has written to: an answer that it kept could be lost
    on us.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        by = durable.written_by(folder)
        if (found := re.search(r"format (\d{1,9})$", by)) and int(found[1]) > FORMAT:
            raise OtherVersion(f"{folder}: written by {by}, this fedft reads format {FORMAT}; start that version")
        self.folder = folder
        self.sent = SentRecords(folder / FILE)
        self._states = StateFiles(folder)
        self._last: tuple[Asked, bytes] | None = None
        self._hashed: tuple[bytes, bytes] = b"", hashlib.sha256().digest()
        """The answer that was hashed last, and its SHA-256."""
        self._saved: dict[str, dict[str, str]] = {}
        """What the file of a run's state was last said to hold, by run."""
        for name, run_of in (("answer", _run_of_answer), ("state", _run_of_state)):
            if (run := run_of(durable.verified(folder / f"{name}.fedft"))) is not None:
                (folder / f"{name}.fedft").replace(self._file(name, run))

    def keep_answer(self, asked: Asked, payload: bytes) -> None:
        """Make an answer durable before it is sent, so that a repeated request gets the same bytes.

        It takes the place of the answer kept before in the same run. Raises RunPaused where the disk does not take it.
        """
        durable.mark(self.folder, FORMAT)
        durable.commit(self._file("answer", asked.run), json.dumps(asdict(asked)).encode() + b"\n", payload)
        self._last = asked, payload

    def digest_of(self, payload: bytes) -> bytes:
        """SHA-256 of an answer, 32 bytes: computed once for the record, the log and the seal of the same object."""
        answer, digest = self._hashed
        if payload is not answer:
            digest = hashlib.sha256(payload).digest()
            self._hashed = payload, digest
        return digest

    def answer(self, run: str) -> tuple[Asked, bytes] | None:
        """(request, payload) of the answer that was kept last in `run`; None if there is none that can be read."""
        last = self._last  # the last of all is in memory, others are read each time
        if last is None or last[0].run != run:
            try:
                head, _, payload = (durable.verified(self._file("answer", run)) or b"").partition(b"\n")
                last = Asked(**json.loads(head)), payload
            except (ValueError, TypeError):
                return None
        return last if last[0].run == run else None

    def keep_state(self, run: str, label: str, state: State, plan: Plan | None = None) -> None:
        """Make the state that the site holds in a run durable, with the server's `label` of it.

        `plan`: that brought the site there; its numbers are kept, too. Nothing is written where the file holds just
        this already. The file may be lost at any time: the server then sends the state again. Raises RunPaused where
        the disk does not take it.
        """
        meta = {"run": run, "version": str(state.version), "label": label, "digest": state.digest, **_numbers(plan)}
        if meta == self._saved.get(run):
            return
        self._saved.pop(run, None)
        durable.mark(self.folder, FORMAT)
        self._states.keep(run, meta, state)
        self._saved[run] = meta

    def state(self, run: str) -> tuple[str, State] | None:
        """(label, state) that the site holds in `run`; None if no state of that run can be read."""
        return self._states.read(run)

    def kept(self, run: str) -> Path:
        """The folder of what the site's client keeps for itself in `run`; it may not exist."""
        old, own = self.folder / "kept", self.folder / "kept" / run
        for path in old.glob("kept-*.fedft"):
            if _run_of_state(durable.verified(path)) == run:
                own.mkdir(exist_ok=True)
                path.replace(own / path.name)
        return own

    def keep_runs(self, present: Collection[str]) -> None:
        """Keep the files of the `present` runs, and of as many others, the newest, as make up RUNS_AT_ONCE.

        So a server that begins run after run does not fill the disk. What is removed is told of in the log.
        """
        found: dict[str, list[Path]] = {}
        files = [self.folder.glob(of) for of in ("*-*.fedft", "kept/*/*.fedft", f"kept/*/{noise_key.FILE}")]
        for path in chain(*files):
            run = path.parent.name if path.parent.parent.name == "kept" else path.stem.rpartition("-")[2]
            if RUN.fullmatch(run):
                found.setdefault(run, []).append(path)
        others = sorted(found.keys() - set(present), key=lambda run: max(map(_changed, found[run])))
        for run in others[: max(0, len(others) + len(present) - RUNS_AT_ONCE)]:
            log.warning("run %s: what was kept of it is removed, there are %d newer runs", run, RUNS_AT_ONCE)
            for path in found[run]:
                path.unlink(missing_ok=True)
            with suppress(OSError):
                (self.folder / "kept" / run).rmdir()

    def _file(self, name: str, run: str) -> Path:
        return self.folder / f"{name}-{run}.fedft"


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns


def _run_of_answer(body: bytes | None) -> str | None:
    """The run that an answer's file is of; None if it does not say."""
    with suppress(ValueError, KeyError, TypeError):
        run = json.loads((body or b"").partition(b"\n")[0])["run"]
        return run if RUN.fullmatch(run) else None
    return None


def _run_of_state(body: bytes | None) -> str | None:
    """The run that a state's file, or one of what a client keeps, is of; None if it does not say."""
    with suppress(ValueError, KeyError, TypeError):
        run = durable.metadata(body or b"")["run"]
        return run if RUN.fullmatch(run) else None
    return None


def _numbers(plan: Plan | None) -> dict[str, str]:
    """What a plan says of the adapter that stands at its state."""
    return {} if plan is None else {"plan": json.dumps({key: getattr(plan, key) for key in PLAN}, default=dict)}


def plan_of(meta: Mapping[str, str]) -> Plan:
    """The plan, without tensors, that leaves a client at the state of a file with this metadata.

    Raises KeyError or ValueError for a file without one, such as one that an earlier version wrote.
    """
    said, version, label = json.loads(meta["plan"]), int(meta["version"]), meta["label"]
    bare = Plan(meta["run"], version, version, have=version, label=label, have_label=label)
    return replace(bare, **{key: said[key] for key in PLAN})


def work_of(turn: Turn, rows: str = "", *, any_slot: bool = False) -> str:
    """The digest, hexadecimal, of everything that decides an answer to TRAIN except the attempt's number.

    Args:
        turn: at which the answer is made.
        rows: the digest of the rows that are trained on.
        any_slot: whether the slot does not count whose masks hide the answer: what is done is the same in any.
    """
    p = turn.plan
    extra = {k: x for k, x in p.extra.items() if not (any_slot and k in (BLOCK, SLOT))}
    kept = tensors.digest(tensors.in_one(turn.kept)) if turn.kept else ""
    asked = [
        p.run,
        p.round,
        p.version,
        p.rank,
        dict(p.ranks),
        p.steps,
        p.learning_rate,
        p.counted,
        extra,
        turn.held_digest,
        kept,
        rows,
    ]
    if p.evaluate:
        asked.append("evaluate")
    if p.chosen or p.batch or p.bits:  # left out at their defaults: answers of before are told by the rest
        asked += [p.chosen, p.batch, p.bits]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
