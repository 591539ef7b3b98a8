"""Examples give what they show: those in docstrings, and the commands and Python of the documents."""

import doctest
import importlib
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedft import strategies
from fedft.cli import main
from fedft.run_file import load
from fedft.testing import strategy_contract

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedft", "server", "client", "strategies", "simulations")
SHOWING = sorted(
    p for room in ROOMS for p in (ROOT / room).rglob("*.py") if re.search(r"^\s*>>> ", p.read_text(), re.MULTILINE)
)
EXAMPLES = ROOT / "tests" / "plugin_example"
README, CONTRIBUTING, DEPLOYMENT = (
    (ROOT / f"{name}.md").read_text(encoding="utf-8") for name in ("README", "CONTRIBUTING", "DEPLOYMENT")
)
SMALL = [
    "local.steps=2", "local.batch_size=4", "server.rounds=1", "clients.rank=2", "data.max_length=32", "eval.max_rows=4",
]  # fmt: skip

Fedft = Callable[..., str]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "fedft" else ("fedft", *parts)).removesuffix(".__init__")


@pytest.mark.parametrize("name", [_module(p) for p in SHOWING])
def test_examples_give_what_they_show(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name), report=True)
    assert tried, f"{name} has lines that begin with >>> where no docstring is"
    assert not failed, f"{failed} of {tried} examples in {name}; the differences are printed above"


@pytest.mark.parametrize("room", ["arithmetic", "randomness", "data"])
def test_rooms_of_plain_functions_show_examples(room: str) -> None:
    assert any(p.parent == ROOT / "fedft" / room for p in SHOWING)


# -- the documents ---------------------------------------------------------------------------------------------------


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def fedft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fedft:
    """The command, in a folder of its own: what it prints, if it ends with the exit code `code`."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *more: str, code: int = 0) -> str:
        done = CliRunner().invoke(main.app, [*shlex.split(line.removeprefix("fedft "), comments=True), *more])
        assert done.exit_code == code, f"{line}: {done.output}{done.exception!r}"
        return done.output

    return run


@pytest.fixture
def sets(tiny_base: Path) -> list[str]:
    """Overrides that make any run a short one."""
    return [w for key in (f"model.id='{tiny_base}'", "model.device=cpu", *SMALL) for w in ("--set", key)]


@pytest.fixture
def run_toml(tmp_path: Path, tiny_base: Path) -> Path:
    """The README's run file, on rows of its form and a small model."""
    rows = [{"clinic": ("north", "south")[n % 2], "question": f"{n} + 1", "answer": str(n + 1)} for n in range(40)]
    (tmp_path / "visits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = blocks(README, "toml")[0].replace('"models/my-llama"', f'"{tiny_base}"').replace('"cuda"', '"cpu"')
    (tmp_path / "run.toml").write_text(text, encoding="utf-8")
    return tmp_path / "run.toml"


@pytest.mark.slow
def test_a_run_file_of_the_readme_is_simulated_measured_exported_and_raced(
    fedft: Fedft, run_toml: Path, sets: list[str]
) -> None:
    folder = run_toml.parent
    fedft("simulate run.toml --out DIR", *sets)
    fedft("simulate run.toml --out DIR --resume", *sets, "--set", "server.rounds=2")
    assert json.loads((folder / "DIR" / "summary.json").read_text())["rounds"] == 2
    assert "exact matc" in fedft("eval DIR --metric exact_match --rouge")
    fedft("export DIR --to FOLDER")
    fedft("export DIR --to whole --merged")
    for file in ("FOLDER/adapter_config.json", "FOLDER/tokenizer.json", "whole/model.safetensors"):
        assert (folder / file).exists(), file
    fedft("report DIR")
    (race,) = re.findall(r"`(fedft race [^`]+)`", README)
    assert "local" in fedft(" ".join(race.split()).replace("--seeds 3", "--seeds 1"), *sets)
    assert (folder / "fedft-runs" / "race" / "race.html").exists()


@pytest.mark.slow
def test_the_readme_s_python_runs(fedft: Fedft, run_toml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "".join(
        f"{k.partition('.')[2]} = {v}\n" for k, v in (w.split("=") for w in SMALL) if k.startswith("server")
    )
    run_toml.write_text(run_toml.read_text() + f"[server]\n{small}[clients]\nrank = 2\n")
    (block,) = [b for b in blocks(README, "python") if "simulate" in b]
    exec(compile(block, "README.md", "exec"), {})
    assert "model" in capsys.readouterr().out


@pytest.mark.slow
def test_the_readme_s_choices_by_name_run(fedft: Fedft, run_toml: Path, sets: list[str]) -> None:
    (block,) = [b for b in blocks(README, "toml") if "on = " in b]
    extra = block.replace(
        "[data]",
        '[data]\ntrain = "visits.jsonl"\nclient = "clinic"\nprompt = "{question} "\nresponse = "{answer}"',
    )
    run_toml.write_text(extra)
    assert "fedopt" in fedft("simulate run.toml", *sets)


@pytest.mark.parametrize("form", ["text", "messages", "conversations", "pairs"])
def test_the_forms_of_records_of_data_md_run(fedft: Fedft, tmp_path: Path, tiny_base: Path, form: str) -> None:
    """Its run file of this form, and the template that it shows for a model that has none."""
    text = (ROOT / "DATA.md").read_text(encoding="utf-8")
    of_form = {"text": '"{text}"', "messages": '"messages" ', "conversations": '"conversations"', "pairs": '"dpo"'}
    (block,) = [b for b in blocks(text, "toml") if of_form[form] in b]
    (shown,) = re.findall(r'chat_template = """.*?"""', text, re.DOTALL)
    names = ("role", "content") if form == "messages" else ("from", "value")
    with (tmp_path / "rows.jsonl").open("w") as file:
        for n in range(40):
            talk = [dict(zip(names, said, strict=True)) for said in (("user", f"{n} + 1"), ("assistant", str(n + 1)))]
            row = {"client": "ab"[n % 2], form: f"{n} + 1 is {n + 1}" if form == "text" else talk}
            row |= {"prompt": f"{n} + 1", "chosen": str(n + 1), "rejected": "no"} if form == "pairs" else {}
            file.write(json.dumps(row) + "\n")
    block = re.sub(r'(train = )"[\w.]+"', r'\1"rows.jsonl"', block)
    (tmp_path / "run.toml").write_text(block if form in ("text", "pairs") or shown in block else f"{block}{shown}\n")
    small = [w for key in (f"model.id='{tiny_base}'", *SMALL[:4]) for w in ("--set", key)]
    fedft("simulate run.toml --out DIR", *small)
    rows = json.loads((tmp_path / "DIR" / "summary.json").read_text())["rows"]
    assert (rows["rows"], rows["cut"], rows["empty"], rows["never_stops"]) == (40, 0, 0, "")


@pytest.mark.slow
def test_the_readme_s_commands_for_a_strategy_of_one_s_own_run(
    fedft: Fedft, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    (block,) = [b for b in blocks(README, "sh") if "plugin_example" in b]
    there, *lines = block.splitlines()
    assert ROOT / there.removeprefix("cd ") == EXAMPLES
    for line in lines:
        words = line.removeprefix("PYTHONPATH=. ")
        assert fedft(words, *(sets if words.startswith("fedft simulate") else ()))


def test_run_files_of_the_documents_make_sense_with_their_strategies(tmp_path: Path) -> None:
    """What cannot be combined is refused before a model is loaded."""
    found = [b for path in ROOT.glob("*.md") for b in blocks(path.read_text(encoding="utf-8"), "toml")]
    for block in (b for b in found if not b.startswith("[project.")):
        (tmp_path / "run.toml").write_text(block)
        strategies.of(load(tmp_path / "run.toml"))


def test_python_in_contributing_is_of_the_examples_or_a_strategy_that_keeps_the_contract() -> None:
    examples = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    own = [b for b in blocks(CONTRIBUTING, "python") if not any(b in text for text in examples)]
    for block in own:
        names: dict[str, Any] = {"__name__": "contributing"}
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
        (made,) = [
            f
            for n, f in names.items()
            if callable(f) and getattr(f, "__module__", "") == "contributing" and n[0].islower()
        ]
        strategy_contract(made())


# -- a deployment's keys and folders; servers and sites are started by `test_deployment.py` ----------------------------


def _lines(heading: str) -> list[str]:
    (block, *_) = blocks(DEPLOYMENT.partition(f"## {heading}\n")[2], "sh")
    return [line.partition(" #")[0].strip() for line in block.splitlines()]


def test_the_document_s_way_to_keys_works(fedft: Fedft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, site = tmp_path / "server", tmp_path / "site"
    for place in (server, site):
        place.mkdir()
    first, second, third, fourth, fifth, *_ = _lines("From nothing to a federation")
    for place, line in ((server, first), (site, second)):
        monkeypatch.chdir(place)
        fedft(line)
    shutil.copy(site / "keys" / "north.card.toml", server)
    monkeypatch.chdir(server)
    for line in (third, fourth, "fedft keys list keys", "fedft keys renew keys", "fedft keys revoke keys north"):
        assert fedft(line), line
    shutil.copy(server / "north.kit.toml", site)
    monkeypatch.chdir(site)
    fedft(fifth)
    assert {"ca.pem", "server.pub"} <= {p.name for p in (site / "keys").iterdir()}
    assert (site / "site.toml").exists()


def test_the_document_s_rehearsal_makes_the_folders_that_it_names(fedft: Fedft, run_toml: Path) -> None:
    keys, split, client, server = _lines("Rehearsal on one machine")
    fedft(keys)
    made = fedft(split)
    assert client.removeprefix("fedft client ") in made.splitlines()
    site = client.removeprefix("fedft client ")
    assert "policy" in (run_toml.parent / site).read_text()
    assert "rows" in fedft(f"fedft doctor {site}", code=1)  # nobody listens at the server's address yet
    assert server.startswith("fedft server run.toml")
