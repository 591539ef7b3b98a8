"""Every block on a page of the site is run, in the order of the page, in a folder of its own.

```toml title="run.toml"     is written to that file; without a title it has to be a run file, or tables of one
```python                    (without a title) runs, all of a page in one process, one after the other
```sh                        its lines that begin with `fedft` run, at tiny settings; nothing else may stand there
<!-- fails: 2 -->            before a block of commands: its last one ends so, and says what the next block shows
<!-- not run: REASON -->     before a block that cannot run here; there are few, and all have a reason
"""

import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fedft
from fedft import run_file
from fedft.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"
STARTERS = DOCS.parent / "fedft" / "starters"
PAGES = sorted(DOCS.glob("*.md"))
NOT_RUN = 5  # blocks that may be left out, of all pages
SMALL = {
    "local": {"steps": 2, "batch_size": 2},
    "server": {"rounds": 1},
    "clients": {"rank": 2},
    "data": {"max_length": 64},
    "eval": {"max_rows": 2, "generate_tokens": 4},
}
TAKES_SETTINGS = ("simulate", "race", "plan")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it is (or ""), the comment before it (or ""), its text and its line."""

    language: str
    title: str
    said: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order; a starter that is shown is read from where it is."""
    text = re.sub(
        r"^--8<--\n(\w+\.py)\n--8<--$", lambda m: (STARTERS / m[1]).read_text(), page.read_text(), flags=re.MULTILINE
    )
    found = re.finditer(
        r'^(?:<!-- (.*?) -->\n)?```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE
    )
    return [Block(m[2], m[3] or "", m[1] or "", m[4], text.count("\n", 0, m.start()) + 1) for m in found]


def test_no_block_is_overlooked() -> None:
    for page in PAGES:
        fences = len(re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE))
        assert fences == 2 * len(blocks(page)), f"{page.name}: a block that is not of the form that is run"


def test_few_blocks_are_not_run_and_all_say_why() -> None:
    left_out = [(page.name, b.said) for page in PAGES for b in blocks(page) if b.said.startswith("not run")]
    assert all(re.match(r"not run: needs a (network|GPU|service|checkout)", said) for _, said in left_out), left_out
    assert len(left_out) <= NOT_RUN, left_out
    assert sum(len(blocks(page)) for page in PAGES) > 4 * NOT_RUN


def test_what_is_only_shown_is_no_command() -> None:
    shown = [line for page in PAGES for b in blocks(page) if b.language == "text" for line in b.text.splitlines()]
    assert not [line for line in shown if re.match(r"\$|fedft \w|pip |make |>>> ", line)]


@pytest.fixture
def place(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model in it, where every run is a short one."""
    (tmp_path / "models").mkdir()
    shutil.copytree(tiny_base, tmp_path / "models" / "my-llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fedft, "simulate", partial(_short, fedft.simulate))
    return tmp_path


def _short(simulate: Any, *args: Any, **tables: Any) -> Any:
    """`fedft.simulate`, with the keys that make a run short over those that are given."""
    if not args and "model" not in tables:
        tables["model"] = {"id": "models/my-llama"}
    merged = {name: {**(tables.get(name) or {}), **keys} for name, keys in SMALL.items() if name != "data"}
    return simulate(*args, **{**tables, **merged})


def _marks(page: Path) -> Any:
    """Pages on which something is trained take seconds, and a race more."""
    return pytest.mark.slow if re.search(r"simulate[ (]|fedft race ", page.read_text(encoding="utf-8")) else ()


@pytest.mark.parametrize("page", [pytest.param(p, id=p.stem, marks=_marks(p)) for p in PAGES])
def test_the_blocks_of_a_page_run(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "page"}
    todo = blocks(page)
    for n, block in enumerate(todo):
        where = f"{page.name}, line {block.line}"
        if block.said.startswith("not run"):
            continue
        if block.title:
            file = place / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
            sys.modules.pop(file.stem, None)
        elif block.language == "python":
            exec(compile(block.text, where, "exec"), names)
        elif block.language == "toml":
            (place / "part.toml").write_text(block.text, encoding="utf-8")
            run_file.load(place / "part.toml")
        elif block.language == "sh":
            fails = int(block.said.removeprefix("fails: ")) if block.said else 0
            said = _run(block.text, where, fails, monkeypatch)
            if fails:
                assert todo[n + 1].text.strip().removeprefix("fedft: ") in said, f"{where}: {said}"
        else:
            assert block.language == "text", f"{where}: a block in {block.language} without a title"


def _run(text: str, where: str, code: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the commands of a block; what the last one said. All end with 0, but the last with `code`."""
    said, lines = "", list(_commands(text))
    for n, words in enumerate(lines):
        if words[0].startswith("PYTHONPATH="):
            monkeypatch.syspath_prepend(words.pop(0).removeprefix("PYTHONPATH="))
        assert words[0] == "fedft", f"{where}: {shlex.join(words)}: only commands of fedft can be run"
        asked = [*words[1:], *_settings(words[1:])]
        done = CliRunner().invoke(main.app, asked)
        said = f"{done.output}{done.exception or ''}"
        wanted = code if n == len(lines) - 1 else 0
        ended = getattr(done.exception, "exit_code", done.exit_code)
        assert ended == wanted, f"{where}: {shlex.join(asked)} ended with {ended}: {said}"
    return said


def _commands(text: str) -> Iterator[list[str]]:
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def _settings(words: list[str]) -> list[str]:
    """Options that make a command quick; what the page's own `--set` says is checked, as it comes first."""
    if words[0] not in TAKES_SETTINGS:
        return []
    keys = [f"{table}.{key}={value}" for table, keys in SMALL.items() for key, value in keys.items()]
    keys += ["model.device=cpu"]
    if len(words) == 1 or not words[1].endswith(".toml"):
        keys.append("model.id=models/my-llama")
    return [w for key in keys for w in ("--set", key)]
