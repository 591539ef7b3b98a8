"""`fedft new KIND NAME`: a package with a plug-in to begin with, its entry point and the test of its contract."""

import keyword
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from fedft.cli.options import AsJson
from fedft.errors import ConfigError

KINDS = {"strategy": "example", "adapter": "Example", "objective": "example", "codec": "example", "metric": "example"}
"""Kind -> what of its starter is named as the entry point."""
PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{name}"
version = "0.1.0"
dependencies = ["fedft"]

[project.entry-points."{group}"]
{name} = "{name}:{value}"

[tool.setuptools]
py-modules = ["{name}"]
"""
TEST = '''"""{name} keeps the contract of its kind: what the engine relies on. The package has to be installed."""

{imported}from {module} import {suite}


def test_{name}() -> None:
    {suite}({argument})
'''


def new(
    kind: Annotated[str, typer.Argument(help="strategy, adapter, objective, codec or metric.")],
    name: Annotated[str, typer.Argument(help="A new name, as in a run file: lower-case letters, digits and _.")],
    to: Annotated[Path | None, typer.Option(help="Folder to write (default: one of that name, here).")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a package with a plug-in that works, to be changed into yours: module, entry point and contract test."""
    import json

    from fedft import check, registry

    try:
        check.one_of(KINDS, kind=kind)
    except ValueError as e:
        raise ConfigError(f"{e}; for others see CONTRIBUTING.md, which names an example of each") from e
    letters = "[a-z0-9]" if kind == "codec" else "[a-z0-9_]"  # a codec's name is part of a text with its options
    if not re.fullmatch(rf"[a-z]{letters}{{0,39}}", name) or keyword.iskeyword(name):
        raise ConfigError(f"name is {name!r}, wanted a letter and then some of {letters}, as in 'my{kind}'")
    if name in registry.REGISTRIES[kind]:
        raise ConfigError(f"there is a {kind} {name!r} already; wanted a new name")
    folder = to or Path(name)
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; wanted a new folder")
    folder.mkdir(parents=True)
    for file, text in _package(kind, name).items():
        (folder / file).write_text(text, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "kind": kind, "name": name}))
        return
    typer.echo(
        f"{folder}/{name}.py is yours to change\n"
        f"pip install -e {folder}          makes it known by its name\n"
        f"pytest {folder}                  checks that it keeps its contract, as does: fedft check {kind} {name}"
    )


def _package(kind: str, name: str) -> dict[str, str]:
    """{file: text} of the package of a plug-in of this kind and name."""
    from fedft import registry

    camel = "".join(part.capitalize() for part in name.split("_"))
    source = files("fedft.starters").joinpath(f"{kind}.py").read_text(encoding="utf-8")
    source = re.sub(r"\bexample\b", name, source.replace("Example", camel))
    value = KINDS[kind].replace("Example", camel).replace("example", name)
    module, _, suite = registry.SUITES[kind].partition(":")
    known = registry.REGISTRIES[kind]
    by_name = kind == "codec"  # its options are in its name
    facts = {"name": name, "group": known.group, "value": value, "module": module, "suite": suite}
    facts["imported"] = "" if by_name else f"from {name} import {value}\n\n"
    facts["argument"] = f'"{name}"' if by_name else f"{value}()" if known.called else value
    return {
        f"{name}.py": source,
        "pyproject.toml": PROJECT.format(**facts),
        f"test_{name}.py": TEST.format(**facts),
    }
