"""Runs whose tensors are read from files because they are large: the same bytes, and fewer copies in memory."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fedft import run_file
from fedft.arithmetic.tensors_in_file import DigestedInFile
from fedft.client.train import Client
from fedft.contract import Turn
from fedft.server import admitted, state_in_file
from fedft.simulations import run as runs
from fedft.simulations import workplace


def facts(base: Path, out: Path, *more: str, **how: Any) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without times, of a run of all parameters."""
    small = ["local.batch_size=2", "local.steps=1", "data.max_length=24", "data.clients=3", "eval.max_rows=2"]
    own = [f"model.id='{base}'", "strategy.name=fedavg", "server.rounds=2", "eval.every=2"]
    found = runs.simulate(run_file.load(runs.QUICKSTART, [*own, *small, *more]), out=out, **how)
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "reply_s")} for line in lines]


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (admitted, state_in_file, workplace):
        monkeypatch.setattr(module, "LARGE", 1)


def live() -> int:
    """Bytes of all tensors of this process that are no parameters."""
    gc.collect()
    return sum(x.nbytes for x in gc.get_objects() if type(x) is Tensor)


@pytest.mark.parametrize("down", ["fp32", "int8"])
def test_no_byte_depends_on_what_is_held(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, down: str
) -> None:
    held: list[type] = []
    waiting: list[int] = []
    steps, others = Client.steps, live()

    def looked(client: Client, turn: Turn) -> Any:
        held.append(type(turn.held))
        if len(held) == 5:  # of six turns; to look costs seconds
            waiting.append(live() - others)
        return steps(client, turn)

    monkeypatch.setattr(Client, "steps", looked)
    wanted = facts(tiny_base, tmp_path / "held", f"codec.down={down}")
    assert {*held} == {dict}
    before = max(waiting)
    held.clear()
    waiting.clear()
    request.getfixturevalue("all_large")
    assert facts(tiny_base, tmp_path / "apart", f"codec.down={down}") == wanted
    if down == "fp32":  # what a codec has rounded is the clients' own
        assert {*held} == {DigestedInFile}
        assert max(waiting) < before / 20, "beside parameters, nothing of their size waits while a client trains"


def test_a_run_that_was_killed_goes_on_with_tensors_in_files_to_the_same_bytes(
    tiny_base: Path, tmp_path: Path, all_large: None
) -> None:
    class Killed(BaseException):
        pass

    def kill(kind: str, info: Any) -> None:
        if kind == "admitted" and info["round"] == 1:
            raise Killed

    def states(found: list[dict[str, Any]]) -> list[str]:
        return [line["state_digest"] for line in found]

    wanted = facts(tiny_base, tmp_path / "a")
    with pytest.raises(Killed):
        facts(tiny_base, tmp_path / "b", observe=kill)
    assert states(facts(tiny_base, tmp_path / "b", resume=True)) == states(wanted)
