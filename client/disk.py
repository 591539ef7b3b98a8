"""A site's files: the state it holds, the answer it sent last, and the record of all that it has sent."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedft import durable
from fedft.arithmetic import tensors
from fedft.client.sent_records import FILE, SentRecords
from fedft.contract import State, Turn
from fedft.update import Plan

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
    """A site's files in `folder`, which is made if missing: the state it holds, the answer it sent last, and `sent`.

    A file of the first two whose SHA-256 is wrong counts as absent.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._state, self._answer = folder / "state.fedft", folder / "answer.fedft"
        self.sent = SentRecords(folder / FILE)
        self._last: tuple[Asked, bytes] | None = None
        self._saved: dict[str, str] = {}
        """What the file of a state was last said to hold."""

    def keep_answer(self, asked: Asked, payload: bytes) -> None:
        """Make an answer durable before it is sent, so that a repeated request gets the same bytes.

        It takes the place of the answer kept before. Raises RunPaused where the disk does not take it.
        """
        durable.commit(self._answer, json.dumps(asdict(asked)).encode() + b"\n", payload)
        self._last = asked, payload

    def answer(self) -> tuple[Asked, bytes] | None:
        """(request, payload) of the answer that was kept last; None if there is none that can be read."""
        if self._last is None:
            try:
                head, _, payload = (durable.verified(self._answer) or b"").partition(b"\n")
                self._last = Asked(**json.loads(head)), payload
            except (ValueError, TypeError):
                return None
        return self._last

    def keep_state(self, run: str, label: str, state: State, plan: Plan | None = None) -> None:
        """Make the state that the site holds in a run durable, with the server's `label` of it.

        `plan`: that brought the site there; its numbers are kept, too. Nothing is written where the file holds just
        this already. The file may be lost at any time: the server then sends the state again. Raises RunPaused where
        the disk does not take it.
        """
        meta = {"run": run, "version": str(state.version), "label": label, "digest": state.digest, **_numbers(plan)}
        if meta == self._saved:
            return
        self._saved = {}
        durable.commit(self._state, save_tensors({n: t.contiguous() for n, t in state.tensors.items()}, meta))
        self._saved = meta

    def state(self, run: str) -> tuple[str, State] | None:
        """(label, state) that the site holds in `run`; None if no state of that run can be read."""
        body = durable.verified(self._state)
        try:
            if body is not None:
                meta = durable.metadata(body)
                if meta["run"] == run:
                    return meta["label"], State(int(meta["version"]), load_tensors(body))
        except (SafetensorError, KeyError, ValueError):
            pass
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


def work_of(turn: Turn, rows: str = "") -> str:
    """The digest, hexadecimal, of everything that decides an answer to TRAIN except the attempt's number.

    `rows`: the digest of the rows that are trained on.
    """
    p = turn.plan
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
        dict(p.extra),
        turn.held_digest,
        kept,
        rows,
    ]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
