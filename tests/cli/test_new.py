"""`fedft new` writes plug-ins that keep their contracts as they are, and refuses what would overwrite or shadow."""

import importlib
import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedft import registry
from fedft.cli import main, new
from fedft.errors import ConfigError


@pytest.mark.parametrize("kind", new.KINDS)
def test_what_is_written_keeps_its_contract(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, name = tmp_path / "mine", f"my{kind}"
    done = CliRunner().invoke(main.app, ["new", kind, name, "--to", str(folder)])
    assert done.exit_code == 0, done.output
    assert f"fedft check {kind} {name}" in done.output
    points = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points[registry.REGISTRIES[kind].group][name].startswith(f"{name}:")
    assert not re.search(
        r"\bexample", (folder / f"{name}.py").read_text().replace("fedft.data.examples", ""), re.IGNORECASE
    )
    installed = folder / f"{name}-0.1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    points_file = "".join(f"[{group}]\n{name} = {where[name]}\n" for group, where in points.items())
    (installed / "entry_points.txt").write_text(points_file)
    monkeypatch.syspath_prepend(folder)
    getattr(importlib.import_module(f"test_{name}"), f"test_{name}")()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["planner", "mine"], "CONTRIBUTING.md"),
        (["strategy", "fedit"], "already"),
        (["codec", "my_own"], "wanted a letter"),
        (["metric", "class"], "wanted a letter"),
    ],
)
def test_mistakes_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["new", *words, "--to", str(tmp_path / "x")])
    assert isinstance(done.exception, ConfigError)
    assert said in str(done.exception)
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    done = CliRunner().invoke(main.app, ["new", "strategy", "mine", "--to", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    done = CliRunner().invoke(main.app, ["new", "strategy", "mine", "--to", str(tmp_path / "x"), "--json"])
    assert json.loads(done.output)["name"] == "mine"
