"""Examples in docstrings give what they show."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedft", "server", "client", "strategies", "simulations")
SHOWING = sorted(
    p for room in ROOMS for p in (ROOT / room).rglob("*.py") if re.search(r"^\s*>>> ", p.read_text(), re.MULTILINE)
)


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
