"""The front door: every mistake is one line on stderr and a non-zero exit code, never a traceback."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fedft.cli import main
from fedft.config import RunConfig, Server
from fedft.contract import State
from fedft.errors import ConfigError
from fedft.reports.terminal import table
from fedft.server import run_folder
from fedft.server.checkpoint import Store
from fedft.simulations import run as runs

ROWS = '{"who": "a", "q": "1 + 1", "a": "2"}\n{"who": "b", "q": "2 + 2", "a": "4"}\n'
MODEL = "[data]\ntrain = 'rows.jsonl'\nclient = 'who'\nprompt = '{q}'\nresponse = '{a}'\n"


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture
def fedft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """The command in this process, in a folder of its own: its exit code and what it wrote."""

    def run(*args: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fedft", *args])
        code = 0
        try:
            main.main()
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


@pytest.mark.parametrize(
    ("run", "rows", "args", "said"),
    [
        ("[local]\nstep = 1\n", ROWS, (), "[local] has no 'step'; did you mean 'steps'?"),
        ("[strategy]\nname = 'flowra'\n", ROWS, (), "no strategy 'flowra'; there are"),
        ("[strategy]\nname = 'nowhere.at:all'\n", ROWS, ("--allow", "nowhere.at:all"), "cannot load nowhere.at:all"),
        (
            "[strategy]\nname = 'os:system'\n",
            ROWS,
            (),
            "'os:system' is code outside fedft",
        ),
        ("[strategy]\nname = 'fedkseed'\nk = 8\n", ROWS, (), "fedkseed has no option 'k'"),
        ("[strategy]\nname = 'fedkseed'\nK = 5000\n", ROWS, (), "K"),
        ("[clients]\nrank = 0\n", ROWS, (), "expected [clients] rank >= 1, got 0"),
        (MODEL.replace("rows.jsonl", "none.jsonl"), ROWS, (), "none.jsonl"),
        (MODEL, ROWS + '{"who": "c", "q": \n', (), "rows.jsonl"),
        (MODEL, ROWS + '{"who": "c", "q": \n', (), "line 3"),
        (MODEL + "clients = 9\n", ROWS, (), "[data] clients = 9, but"),
        (MODEL.replace("{a}", "{answer}"), ROWS, ("--set", "model.id='{base}'"), "answer"),
        (MODEL + "[model]\nid = './no-such-model'\n", ROWS, (), "no folder './no-such-model'"),
        (MODEL + "[model]\ntargets = ['q_prj']\n", ROWS, ("--set", "model.id='{base}'"), "no layer ends in 'q_prj'"),
        ("[data]\npartition = 'iid'\nclients = 9999\n", ROWS, (), "9999"),
        ("", ROWS, ("--out", "/dev/null/run"), "cannot be written"),
        ("", ROWS, ("--resume", "--out", "{tmp}/x", "--set", "local.steps=one"), "steps is 'one', wanted int"),
        ("", ROWS, ("--resume", "--out", "{tmp}/x"), "there is no run to resume"),
        ("", ROWS, ("--out", "{tmp}"), "is not empty and holds no run"),
        (MODEL.replace("{q}", "{q"), ROWS, ("--set", "model.id='{base}'"), "has a brace without its other"),
        (MODEL, ROWS, ("--set", "model.id='{base}'", "--set", "data.max_length=100000"), "max_length = 100000, but"),
        (MODEL, ROWS, ("--set", "model.device=cuda:99"), "[model] device: cannot use 'cuda:99'"),
        (MODEL, ROWS, ("--set", "model.device=tpv"), "[model] device: cannot use 'tpv'"),
        (MODEL, ROWS, ("--set", "model.device=meta"), "[model] device: cannot use 'meta'"),
        (MODEL, ROWS + '{"who": "\\ud800", "q": "", "a": ""}\n', (), "line 3: field 'who' is not text"),
        ("", ROWS, ("--frobnicate",), "No such option"),
        ("[codec]\ndown = 'int8'\n", ROWS, ("--set", "model.id='{base}'"), "wanted 'fp32', got 'int8'"),
        (
            "[clients]\nrank = [2, 4]\n[strategy]\nname='fedit'\n",
            ROWS,
            ("--set", "model.id='{base}'"),
            "one rank for all",
        ),
    ],
)
def test_a_mistake_is_one_line_and_a_non_zero_exit_code(
    fedft: Command, tmp_path: Path, base: Path, run: str, rows: str, args: tuple[str, ...], said: str
) -> None:
    (tmp_path / "run.toml").write_text(run)
    (tmp_path / "rows.jsonl").write_text(rows)
    filled = [a.format(base=base, tmp=tmp_path) if "{" in a else a for a in args]
    done = fedft("simulate", "run.toml", *filled)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert said in lines[0]
    assert lines[0].startswith("fedft: ")
    assert not done.stdout


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Path:
    return tiny_base


@pytest.mark.parametrize(
    "args", [("eval", "nowhere"), ("export", "nowhere", "--to", "there"), ("check-strategy", "floraa")]
)
def test_other_commands_answer_in_one_line_too(fedft: Command, args: tuple[str, ...]) -> None:
    done = fedft(*args)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("fedft: ")


def test_a_model_that_cannot_do_the_task_is_refused(fedft: Command, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    small = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(small).save_pretrained(tmp_path / "bert")
    done = fedft("simulate", "--set", f"model.id='{tmp_path}/bert'", "--out", "x")
    assert done.returncode == 2
    assert "does not generate text" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_simulation_prints_a_row_per_state_and_how_to_load_the_model(
    fedft: Command, tmp_path: Path, base: Path
) -> None:
    sets = [f"model.id='{base}'", "server.rounds=1", "local.steps=2", "data.clients=2", "eval.max_rows=4"]
    done = fedft("simulate", *(x for s in sets for x in ("--set", s)))
    assert done.returncode == 0, done.stderr
    header, _, rows = done.stdout.partition("\n\n")
    wanted = ["model", "trains", "clients", "rows", "a", "memory", "loss"]
    assert [line.split()[0] for line in header.splitlines()] == wanted
    assert [line.split()[0] for line in rows.splitlines()[:3]] == ["round", "0/1", "1/1"]
    assert "AutoPeftModelForCausalLM.from_pretrained('fedft-runs/quickstart-flora/model')" in done.stdout
    listed = json.loads(fedft("eval", "fedft-runs/quickstart-flora", "--json").stdout)
    assert set(listed["clients"]) == {"asyncio", "email"}
    to = fedft("export", "fedft-runs/quickstart-flora", "--to", "out")
    assert to.stdout.splitlines()[0] == "adapter written to out"
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    again = fedft("export", "fedft-runs/quickstart-flora", "--to", "out")
    assert (again.returncode, "is not empty" in again.stderr) == (2, True)


def test_a_folder_that_was_left_before_the_run_began_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "state" / "journal").mkdir(parents=True)
    (tmp_path / "state" / "lock").write_bytes(b"")
    assert run_folder.prepare(RunConfig(), tmp_path, False) == RunConfig()
    (tmp_path / "state" / "journal" / "00000000").mkdir()
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        run_folder.prepare(RunConfig(), tmp_path, False)


def test_a_run_is_run_by_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    first, second, third = (run_folder.alone(tmp_path) for _ in range(3))
    first.__enter__()
    with pytest.raises(ConfigError, match="another process is running this run"):
        second.__enter__()
    assert not first.__exit__(RuntimeError, RuntimeError("the run's own"), None)
    with third:
        pass


def test_a_finished_run_is_not_resumed_with_fewer_rounds(tmp_path: Path) -> None:
    Store(tmp_path / "state").save(State(3, {"x": torch.zeros(1)}), {})
    (tmp_path / "config.toml").write_text("[server]\nrounds = 3\n[limits]\nmax_share = 1.0\n")
    fewer = RunConfig(server=Server(rounds=2))
    with pytest.raises(ConfigError, match="is at round 3, wanted at least as many rounds, got 2"):
        runs.simulate(fewer, out=tmp_path, resume=True)
    assert "rounds = 3" in (tmp_path / "config.toml").read_text()


BROKEN = """
from dataclasses import replace
from fedft import Recipe
from fedft.recipe import mean
from fedft.strategies.fedit import fedit
def broken() -> Recipe:
    return replace(fedit(), aggregate=lambda updates: {n: x + 1 for n, x in mean(updates).items()})
"""


def test_a_strategy_that_breaks_a_promise_fails_the_command(
    fedft: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adds_one.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    done = fedft("check-strategy", "adds_one:broken")
    assert done.returncode == 1
    assert "FAIL  " in done.stdout
    assert not done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to another process")
def test_ctrl_c_is_one_line_that_says_how_to_resume(tmp_path: Path, base: Path) -> None:
    sets = [f"model.id='{base}'", "server.rounds=1000", "local.steps=2", "eval.max_rows=4"]
    command = [sys.executable, "-m", "fedft", "simulate", "--out", "here", *(x for s in sets for x in ("--set", s))]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background has it ignored, for children too
    try:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    until = time.monotonic() + 120
    while not (tmp_path / "here" / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    *said, last = err.splitlines()
    assert last == "fedft: interrupted; nothing is lost: add --resume --out here to the same command"
    assert all(line.startswith("WARNING ") for line in said)  # of rows that were cut


def test_what_looks_like_markup_in_a_name_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"client": "[bold]a[/red]"}], ("client",))
    assert "[bold]a[/red]" in capsys.readouterr().out


def test_strategies_are_listed_with_what_they_declare(fedft: Command) -> None:
    rows = {r["name"]: r for r in json.loads(fedft("strategies", "--json").stdout)}
    assert rows["flora"]["unlike_ranks"]
    assert rows["flora"]["reveals_clients"]
    assert rows["ffa_lora"]["ring_summable"]
    assert all(r["what"] for r in rows.values())


def test_a_mistake_in_a_process_of_its_own_has_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedft", "simulate", "none.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("fedft: none.toml: no such run file")
    assert len(done.stderr.strip().splitlines()) == 1
