"""What a shell is told when somebody presses the tabulator: true names, at once."""

import os
import subprocess
import sys
import time
from dataclasses import fields
from typing import get_type_hints

import pytest

from fedft import registry
from fedft.cli import completion
from fedft.config import RunConfig

SHELL = {**os.environ, "_FEDFT_COMPLETE": "complete_zsh"}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("fedft simul", "simulate"),
        ("fedft race r.toml --strategies fedit,fl", "fedit,flora"),
        ("fedft simulate --set local.st", "local.steps="),
        ("fedft simulate --set strategy.name=ff", "strategy.name=ffa_lora"),
        ("fedft explain mod", "model"),
        ("fedft explain strategy.ferr", "strategy.ferret"),
    ],
)
def test_a_shell_is_told(words: str, wanted: str) -> None:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "fedft"],
        env={**SHELL, "_TYPER_COMPLETE_ARGS": words},
        capture_output=True,
        text=True,
        check=True,
    )
    assert wanted in done.stdout
    assert time.perf_counter() - began < 5, "half a second is the aim; the bound leaves room for a busy machine"


def test_keys_that_are_proposed_are_those_of_a_run_file() -> None:
    keys = completion.set_key("")
    assert len(keys) > 80
    tables = get_type_hints(RunConfig)
    for table, _, key in (word.removesuffix("=").partition(".") for word in keys if word != "strategy.name="):
        assert key in {f.name for f in fields(tables[table])}
    assert completion.set_key("local.nothing") == []
    assert {word.partition("=")[2] for word in completion.set_key("strategy.name=")} == {*registry.strategies.names()}


def test_a_contender_is_proposed_once() -> None:
    assert "fedit,local" in completion.contenders("fedit,")
    assert "fedit,fedit" not in completion.contenders("fedit,")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str) -> None:
    command = [sys.executable, "-m", "fedft", "--show-completion", shell]
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # or it is of the shell that runs this
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "_FEDFT_COMPLETE" in done.stdout
