"""`fedft init` writes a run file that `fedft plan` takes, asks where somebody is there, and overwrites nothing."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedft import run_file
from fedft.cli import init, main
from fedft.errors import ConfigError, DataError, Interrupted

RECORDS: dict[str, list[dict[str, Any]]] = {
    "questions": [{"clinic": "ab"[n % 2], "question": f"{n} + 1", "answer": f"{n + 1}"} for n in range(20)],
    "parts": [{"site": "ab"[n % 2], "instruction": "add", "input": f"{n}", "output": f"{n + 1}"} for n in range(20)],
    "text": [{"user": "ab"[n % 2], "text": f"{n} and one is {n + 1}"} for n in range(20)],
    "talks": [
        {"client": "ab"[n % 2], "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]}
        for n in range(20)
    ],
    "pairs": [{"client": "ab"[n % 2], "prompt": "1?", "chosen": "1", "rejected": "2"} for n in range(20)],
    "tokens": [{"client": "ab"[n % 2], "input_ids": [5, 6, 7]} for n in range(20)],
    "unknown names": [{"left": f"{n}", "right": f"{n + 1}"} for n in range(20)],
}
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{% endif %}"

TERMINAL = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "rows.jsonl"


def _init(*words: str, **how: Any) -> Any:
    return CliRunner().invoke(main.app, ["init", *words], **how)


@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_written_is_planned(kind: str, rows: Path, tiny_base: Path) -> None:
    rows.write_text("".join(json.dumps(row) + "\n" for row in RECORDS[kind]))
    done = _init("--model", str(tiny_base), "--data", "rows.jsonl", "--yes")
    assert done.exit_code == 0, done.exception
    text = Path("run.toml").read_text()
    assert all("#" in line for line in text.splitlines() if "=" in line), "a key without a comment"
    config = run_file.load(Path("run.toml"))
    assert config.data.partition == ("iid" if kind == "unknown names" else "natural")
    more = ["--set", f"data.chat_template={TEMPLATE}"] if kind == "talks" else []
    commands = [line.split("  ")[0].split() for line in done.output.splitlines() if line.startswith("fedft ")]
    assert [words[1] for words in commands] == ["plan", "simulate"]
    planned = CliRunner().invoke(main.app, [*commands[0][1:], *more])
    assert planned.exit_code == 0, planned.exception


def test_it_asks_five_questions_where_somebody_is_there(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.write_text("".join(json.dumps(row) + "\n" for row in RECORDS["questions"]))
    said = dict(zip(init.QUESTIONS, ("stdlib-base", "rows.jsonl", "clinic", "cpu", "large"), strict=True))
    asked = []

    def answer(question: str, default: str | None) -> str:
        asked.append(question)
        return said[next(name for name, text in init.QUESTIONS.items() if text == question)]

    monkeypatch.setattr(init.typer, "prompt", answer)
    monkeypatch.setattr(init, "sys", TERMINAL)
    assert _init("mine.toml").exit_code == 0
    assert asked == [*init.QUESTIONS.values()]
    config = run_file.load(Path("mine.toml"))
    assert (config.data.client, config.server.rounds) == ("clinic", init.SIZES["large"]["rounds"])


def test_who_leaves_in_the_middle_has_nothing_written(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(question: str, default: str | None) -> str:
        raise typer.Abort

    monkeypatch.setattr(init.typer, "prompt", leave)
    monkeypatch.setattr(init, "sys", TERMINAL)
    assert isinstance(_init().exception, Interrupted)
    assert not Path("run.toml").exists()


ALL = ("--model", "stdlib-base", "--client", "2", "--device", "cpu")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "rows.jsonl"), "nobody to ask here: say --model, --client, --device, --size"),
        (("--yes",), "--data is needed"),
        ((*ALL, "--data", "none.jsonl", "--size", "try"), "none.jsonl"),
        ((*ALL, "--data", "rows.jsonl", "--size", "huge"), "wanted one of try, usual, large"),
        (("--data", "rows.jsonl", "--client", "hospital", "--yes"), "'hospital' is no field"),
        (("--data", "odd.jsonl", "--yes"), "the fields are a, b, c"),
        (("there.toml", "--data", "rows.jsonl", "--yes"), "is there already"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(words: tuple[str, ...], said: str, rows: Path) -> None:
    rows.write_text("".join(json.dumps(row) + "\n" for row in RECORDS["questions"]))
    Path("odd.jsonl").write_text('{"a": 1, "b": 2, "c": 3}\n' * 4)
    Path("there.toml").write_text("mine")
    before = {p.name: p.read_text() for p in Path().iterdir()}
    done = _init(*words)
    assert isinstance(done.exception, ConfigError | DataError)
    assert said in str(done.exception)
    assert "\n" not in str(done.exception)
    assert {p.name: p.read_text() for p in Path().iterdir()} == before


def test_long_records_get_room_and_names_with_signs_are_kept(rows: Path) -> None:
    texts = [{"who": "ab"[n % 2], "text": 'say "é" \\ ' * 100} for n in range(20)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    assert _init("--data", "rows.jsonl", "--client", "who", "--yes", "--json").exit_code == 0
    data = run_file.load(Path("run.toml")).data
    assert data.max_length == 384, "1000 characters are at most 334 tokens of three"
    assert (data.client, data.prompt, data.response) == ("who", "", "{text}")
