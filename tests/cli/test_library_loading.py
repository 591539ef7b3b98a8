"""Commands that read torch, transformers and peft put Python's search for garbage off before they do."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedft
from fedft.benchmarks import codec
from fedft.cli import main
from fedft.simulations import race, run

COMMANDS = [["simulate"], ["race", str(run.QUICKSTART)], ["bench", "codec"]]


class Begun(Exception):
    """The command has called `fedft.starting`."""


class AtWork(Exception):
    """It has not, and its libraries are read."""


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_command_puts_the_search_for_garbage_off(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def begun() -> None:
        raise Begun

    def at_work(*args: Any, **how: Any) -> None:
        raise AtWork

    monkeypatch.setattr(fedft, "starting", begun)
    monkeypatch.setattr(fedft, "reading_libraries", nullcontext)  # which begins, and ends, by itself
    for module, name in ((run, "simulate"), (race, "race"), (codec, "bench")):
        monkeypatch.setattr(module, name, at_work)
    monkeypatch.chdir(tmp_path)
    assert type(CliRunner().invoke(main.app, words).exception) is Begun
