"""A site's files: the state it holds and the answer it sent last."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from fedft import durable
from fedft.contract import State


@dataclass(frozen=True)
class Asked:
    """Which request an answer is to, and the work it took."""

    run: str
    round: int
    attempt: int
    plan: str
    """SHA-256 of the plan, hexadecimal."""
    work: str = ""
    """Equal for requests whose answers are equal but for the attempt's number."""


class SiteDisk:
    """A site's files under `folder`; what does not verify is as if it were not there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._state, self._answer = folder / "state.fedft", folder / "answer.fedft"
        self._last: tuple[Asked, bytes] | None = None

    def keep_answer(self, asked: Asked, payload: bytes) -> None:
        """Make the answer durable, before it is sent: whatever happens, these bytes go out again."""
        durable.commit(self._answer, json.dumps(asdict(asked)).encode() + b"\n", payload)
        self._last = asked, payload

    def answer(self) -> tuple[Asked, bytes] | None:
        """The answer kept last."""
        if self._last is None:
            try:
                head, _, payload = (durable.verified(self._answer) or b"").partition(b"\n")
                self._last = Asked(**json.loads(head)), payload
            except (ValueError, TypeError):
                return None
        return self._last

    def keep_state(self, run: str, label: str, state: State) -> None:
        """Make the held state durable; it may always be lost, the server sends it again."""
        meta = {"run": run, "version": str(state.version), "label": label}
        durable.commit(self._state, save_tensors({n: t.contiguous() for n, t in state.tensors.items()}, meta))

    def state(self, run: str) -> tuple[str, State] | None:
        """The state held in that run, behind its label."""
        body = durable.verified(self._state)
        try:
            if body is not None:
                meta = durable.metadata(body)
                if meta["run"] == run:
                    return meta["label"], State(int(meta["version"]), load_tensors(body))
        except (SafetensorError, KeyError, ValueError):
            pass
        return None
