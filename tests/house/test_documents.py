"""The documents say what is so: files, modules, parts, keys, commands and values that they name exist.

Commands and examples that can be run are run by `test_examples.py`.
"""

import re
import tomllib
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.main import get_command

from fedft import contract, recipe, registry, run_file, strategies, update
from fedft.adapters.lora import LoRA
from fedft.cli import main
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.training.first_order import gradient_steps

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedft", "server", "client", "strategies", "simulations", "benchmarks", "tests", ".ci")
DOCUMENTS = {p.name: p.read_text(encoding="utf-8") for p in sorted(ROOT.glob("*.md"))}
README, CONTRIBUTING = DOCUMENTS["README.md"], DOCUMENTS["CONTRIBUTING.md"]
EXAMPLES = ROOT / "tests" / "plugin_example"
GROUPS = {r.group for r in registry.REGISTRIES.values()}

every_document = pytest.mark.parametrize("document", DOCUMENTS)


def prose(document: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", DOCUMENTS[document], flags=re.DOTALL | re.MULTILINE)


def spans(document: str) -> list[str]:
    """What stands between backticks in the text, in one line each."""
    return [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", prose(document))]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENTS[document], re.DOTALL | re.MULTILINE)


def rows(document: str, first: str) -> list[list[str]]:
    """The cells, row by row, of the table whose heading begins with the cell `first`."""
    _, found, rest = DOCUMENTS[document].partition(f"| {first} |")
    assert found, f"{document} has no table of {first!r}"
    lines = rest.partition("\n\n")[0].splitlines()[2:]
    return [[c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]


def table(document: str, first: str) -> dict[str, list[str]]:
    """The table whose heading begins with a cell: the rows' other cells by what the first one names."""
    return {row[0].strip("`"): row[1:] for row in rows(document, first)}


def test_what_a_document_names_is_found() -> None:
    """The functions above find something in the documents as they are written."""
    assert "README.md" in spans("CONTRIBUTING.md") or "STRATEGIES.md" in spans("CONTRIBUTING.md")
    assert blocks("README.md", "toml")
    assert table("README.md", "table")


@every_document
def test_files_named_in_a_document_exist(document: str) -> None:
    """From the checkout's root, `strategies/<name>.py` as a pattern; a bare `name.py` anywhere in a room."""
    missing = []
    for name in spans(document):
        pattern = re.sub(r"<\w+>", "*", name)
        first = pattern.partition("/")[0]
        if re.fullmatch(r"[\w.\-*/]+", pattern) and first in ROOMS and "/" in pattern:
            found = any(ROOT.glob(pattern.rstrip("/")))
        elif re.fullmatch(r"[A-Z]+\.md|[\w*]+\.(py|yaml|service)", pattern):
            found = (ROOT / pattern).exists() or any(p for room in ROOMS for p in (ROOT / room).rglob(pattern))
        else:
            continue
        if not found:
            missing.append(name)
    assert not missing, f"{document} names {missing}"


def imported(dotted: str) -> Any:
    """The module of this name, or what is called so in one; None if there is no such thing."""
    parts = dotted.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        for part in parts[n:]:
            found = getattr(found, part, None)
        return found
    return None


@every_document
def test_modules_named_in_a_document_can_be_imported(document: str) -> None:
    """`fedft.contract.Kind` imports, or is a group of entry points."""
    named = {d for s in spans(document) for d in re.findall(r"(?<![\w.])fedft(?:\.[A-Za-z]\w*)+", s)}
    missing = sorted(d for d in named - GROUPS if imported(d) is None)
    assert not missing, f"{document} names {missing}"


@every_document
def test_parts_named_in_a_document_exist(document: str) -> None:
    """`Recipe.local`, `Kind.mount`: a field or a method of a class that plug-ins are written with."""
    known = {n: c for m in (contract, recipe, update) for n, c in vars(m).items() if isinstance(c, type)}
    named = {m for s in spans(document) for m in re.findall(r"(?<![\w.])([A-Z]\w+)\.(\w+)", s)}
    missing = [f"{c}.{n}" for c, n in sorted(named) if c in known and n not in {*dir(known[c]), *_fields(known[c])}]
    assert not missing, f"{document} names {missing}"


def _fields(kind: type) -> set[str]:
    return {name for base in kind.__mro__ for name in vars(base).get("__annotations__", {})}


@every_document
def test_keys_named_in_a_document_exist(document: str) -> None:
    """`[local] objective` is a key of a run file or of a site file."""
    known: dict[str, set[str]] = {"strategy": set()}
    for config in (RunConfig, SiteConfig):
        for name, kind in get_type_hints(config).items():
            known.setdefault(name, set()).update(f.name for f in fields(kind))
    said = {m for s in spans(document) for m in re.findall(r"^\[(\w+)\] (\w+)", s)}
    said |= {m for s in spans(document) for m in re.findall(r"--set (\w+)\.(\w+)", s)}
    missing = [f"[{t}] {k}" for t, k in sorted(said) if t != "strategy" and k not in known.get(t, ())]
    assert not missing, f"{document} names {missing}"


def test_the_readme_names_every_key_of_a_run_file() -> None:
    found = table("README.md", "table")
    wanted = {f"[{name}]": {f.name for f in fields(kind)} for name, kind in get_type_hints(RunConfig).items()}
    wanted["[strategy]"] = {"name"}
    assert {t: set(re.findall(r"`(\w+)`", cells[0])) for t, cells in found.items()} == wanted


def test_every_kind_of_plug_in_has_its_row() -> None:
    """Its group, its contract, an example that the examples' own package declares, and its suite."""
    found = table("CONTRIBUTING.md", "kind")
    assert list(found) == list(registry.REGISTRIES)
    declared = tomllib.loads((EXAMPLES / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    for kind, (room, group, of, example, suite) in found.items():
        assert (ROOT / room.strip("`")).is_dir(), kind
        assert group.strip("`") == registry.REGISTRIES[kind].group
        assert imported(of.strip("`")) is not None, of
        files = set(re.findall(r"`(\w+)\.py`", example))
        assert files == {where.partition(":")[0] for where in declared[group.strip("`")].values()}
        assert imported(suite.strip("`")) is imported(registry.SUITES[kind].replace(":", ".")), suite


def commands(document: str) -> list[str]:
    """What follows `fedft` between backticks, in a block of commands and in an indented line."""
    shown = [re.sub(r"^PYTHONPATH=\S+ ", "", line) for block in blocks(document, "sh") for line in block.splitlines()]
    shown += re.findall(r"^ {4}(fedft .*)", prose(document), re.MULTILINE)
    return [words.removeprefix("fedft ") for words in (*spans(document), *shown) if words.startswith("fedft ")]


@every_document
def test_commands_named_in_a_document_exist(document: str) -> None:
    known = getattr(get_command(main.app), "commands")  # noqa: B009  (typer hides the type of its group)
    for words in commands(document):
        command = words.split()[0]
        if "<" in command or command.startswith("--"):
            continue
        assert command in known, f"{document} names `fedft {command}`"
        below = [known[command], *getattr(known[command], "commands", {}).values()]
        options = {o for c in below for p in c.params for o in p.opts} | {"--help"}
        assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", words)) <= options, f"{document}: fedft {words}"


def test_every_strategy_and_planner_has_its_row() -> None:
    found = set(re.findall(r"^\| `(\w+)` \|", DOCUMENTS["STRATEGIES.md"], re.MULTILINE))
    assert found == {*registry.BUILT_IN, *registry.PLANNERS}


GOES_WITH: dict[str, dict[str, dict[str, Any]]] = {
    "[model] adapter": {"model": {"adapter": "ia3:IA3"}},
    "[local] transforms": {"local": {"transforms": ["clip_and_noise:clip_and_noise"]}},
    "[clients] rank": {"clients": {"rank": [2, 4]}},
    "[codec] up": {"codec": {"up": "int4"}},
    "[codec] down": {"codec": {"down": "delta | int4"}},
}


def fits(name: str, tables: dict[str, dict[str, Any]]) -> bool:
    """Whether a run file with these tables is taken."""
    plain = {
        "strategy": {"name": name},
        "local": {"optimizer": "sgd", "learning_rate": 1e-3, **tables.get("local", {})},
    }
    try:
        found = strategies.of(run_file.from_dict({**plain, **{t: k for t, k in tables.items() if t != "local"}}))
    except ConfigError:
        return False
    return not ("clients" in tables and found.space.rank_free)  # ranks mean nothing to it


@pytest.mark.parametrize("key", GOES_WITH)
def test_what_goes_with_a_key_does(key: str, monkeypatch: pytest.MonkeyPatch, allow: Any) -> None:
    allow("ia3:IA3", "clip_and_noise:clip_and_noise")
    monkeypatch.syspath_prepend(EXAMPLES)
    (cell,) = [cells[0] for row, cells in table("STRATEGIES.md", "key").items() if row.startswith(key)]
    said = set(re.findall(r"`(\w+)`", cell.partition(", and")[0]))
    assert said == {name for name in registry.BUILT_IN if fits(name, GOES_WITH[key])}


def published_settings() -> list[tuple[str, str]]:
    """(strategy, table and line of a run file) of all that is said to give what a paper has."""
    found = []
    for of, _, _, by in rows("STRATEGIES.md", "of"):
        for key in re.findall(r"`([^`]+ = [^`]+)`", by):
            there, _, line = key[1:].partition("] ") if key.startswith("[") else ("strategy", "", key)
            found += [(name, f"[{there}]\n{line}") for name in re.findall(r"`(\w+)`", of) or ["fedit"]]
    return found


@pytest.mark.parametrize(("name", "text"), published_settings())
def test_what_gives_a_paper_s_setting_is_taken(name: str, text: str) -> None:
    tables = tomllib.loads(text)
    tables.setdefault("strategy", {})["name"] = name
    strategies.of(run_file.from_dict(tables))


def test_what_shares_passes_is_back_propagation_on_pairs() -> None:
    made = {name: strategies.make(name, {}) for name in registry.BUILT_IN}
    shares = {n for n, r in made.items() if gradient_steps(r.local) and type(r.space).several is LoRA.several}
    (cell,) = [cells[0] for row, cells in table("STRATEGIES.md", "key").items() if row.startswith("[server] together")]
    assert set(re.findall(r"`(\w+)`", cell)) == shares


def test_what_need_not_wait_is_what_the_document_says() -> None:
    found = {name for name in registry.BUILT_IN if strategies.make(name, {}).allows_stale}
    (cell,) = [cells[0] for row, cells in table("STRATEGIES.md", "key").items() if row.startswith("[server] buffer")]
    assert set(re.findall(r"`(\w+)`", cell.partition(":")[0])) == found


@every_document
def test_run_files_in_a_document_load(document: str, tmp_path: Path) -> None:
    for block in blocks(document, "toml"):
        if block.startswith("[project."):
            declared = tomllib.loads((EXAMPLES / "pyproject.toml").read_text(encoding="utf-8"))["project"]
            for group, points in tomllib.loads(block)["project"]["entry-points"].items():
                assert points.items() <= declared["entry-points"][group].items()
            continue
        (tmp_path / "run.toml").write_text(block, encoding="utf-8")
        run_file.load(tmp_path / "run.toml")


def test_the_readme_shows_the_example_as_it_is() -> None:
    example = (EXAMPLES / "median.py").read_text(encoding="utf-8")
    assert f"```python\n{example}```\n" in README


def test_the_readme_s_commands_are_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", re.sub(r"```(?!sh).*?```", "", README, flags=re.DOTALL)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"the README names `make {target}`"


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 220
