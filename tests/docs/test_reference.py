"""The pages that are made of the code's words leave nothing out, whatever is added to the code."""

import runpy
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.main import get_command

import fedft
from fedft import registry
from fedft.cli import key_texts, main
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig

HOOK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "docs" / "hooks" / "reference.py"))
PAGES: dict[str, str] = {name: write() for name, write in HOOK["PAGES"].items()}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_one_title_and_closes_its_blocks(page: str) -> None:
    text = PAGES[page]
    fences = [line for line in text.splitlines() if line.startswith("```")]
    assert [line[3:] != "" for line in fences] == [True, False] * (len(fences) // 2)
    outside = "".join(text.split("```")[::2])
    assert sum(line.startswith("# ") for line in outside.splitlines()) == 1


@pytest.mark.parametrize(("page", "config"), [("keys", RunConfig), ("site-keys", SiteConfig)])
def test_every_key_has_its_place_and_a_text(page: str, config: type) -> None:
    lines = PAGES[page].splitlines()
    for table, kind in get_type_hints(config).items():
        assert f"## [{table}] {{ #{table} }}" in lines
        for key in fields(kind):
            (at,) = [n for n, line in enumerate(lines) if line.startswith(f"`{key.name}`{{ #{table}.{key.name} }}")]
            assert len(lines[at + 1]) > len(":   ") + 8, f"{table}.{key.name} has no text"


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_strategy_has_its_formula_its_paper_and_its_options(name: str) -> None:
    _, _, rest = PAGES["strategies"].partition(f"## `{name}` {{ #{name} }}\n")
    said = rest.partition("\n## ")[0]
    assert "```text" in said, "no formula"
    assert "arXiv" in said or "20" in said, "no paper"
    for option in key_texts.of_strategy(name)[1]:
        assert f"`{option.name}`{{ #{name}.{option.name} }}" in said


def test_every_command_and_every_public_name_is_there() -> None:
    commands = getattr(get_command(main.app), "commands")  # noqa: B009  (typer hides the type of its group)
    for name, command in commands.items():
        below = [f"{name} {word}" for word in getattr(command, "commands", ())] or [name]
        assert all(f"## `fedft {words}`\n" in PAGES["commands"] for words in below)
    assert all(f"## `fedft.{name}` {{ #fedft.{name} }}" in PAGES["python"] for name in fedft.__all__)
