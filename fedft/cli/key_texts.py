"""The keys of a table and the options of a strategy as a person reads them: type, default, and what each does."""

import ast
import inspect
import json
import re
import textwrap
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any

from fedft import registry

PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """One key of a table, or one option of a strategy."""

    name: str
    type: str
    default: str
    """As TOML has it; "needed" where there is none, "left out" where nothing is said by default."""
    what: str

    @property
    def headline(self) -> str:
        """The first sentence of what it does."""
        return re.split(r"(?<=[.;])\s", self.what, maxsplit=1)[0].rstrip(".;") if self.what else ""


def of_table(kind: type) -> list[Key]:
    """The keys of a table in order: of a dataclass with a docstring under each field."""
    docs, hints, found = _docs(kind), typing.get_type_hints(kind), []
    for f in fields(kind):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        found.append(Key(f.name, type_of(hints[f.name]), _default(default, MISSING), docs.get(f.name, "")))
    return found


def of_strategy(name: str) -> tuple[str, list[Key]]:
    """(first line, options in order) of a strategy's factory. Raises ConfigError where there is no such strategy."""
    doc = inspect.getdoc(registry.strategies.load(name)) or ""
    _, _, listed = doc.partition("Args:\n")
    entries = re.finditer(r"^ {4}([\w, ]+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE)
    texts = {name: " ".join(m[2].split()) for m in entries for name in m[1].split(", ")}
    found = [
        Key(option, type_of(p.annotation), _default(p.default, inspect.Parameter.empty), texts.get(option, ""))
        for option, p in registry.strategies.options(name).items()
    ]
    return doc.partition("\n")[0], found


def type_of(hint: Any) -> str:
    """A type as a run file's author reads it.

    >>> type_of(int | None), type_of(list[str]), type_of(typing.Literal["a", 2])
    ('whole number', 'list of text', '"a" or 2')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_of(a) for a in args if a is not type(None))
    if origin is typing.Literal:
        return " or ".join(map(json.dumps, args))
    if origin is list:
        return f"list of {type_of(args[0])}"
    if origin is dict or (isinstance(hint, type) and is_dataclass(hint)):
        return "table"
    return PLAIN.get(hint, "name or table" if isinstance(hint, type) else "any value")


def _default(value: Any, none: Any) -> str:
    if value is none:
        return "needed"
    try:
        return "left out" if value is None else json.dumps(value)
    except TypeError:  # of no type that a run file has
        return "left out"


def _docs(kind: type) -> dict[str, str]:
    """{field: the text under it, on one line} of a class."""
    cls = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(cls, ast.ClassDef)
    found = {}
    for statement, below in zip(cls.body, cls.body[1:], strict=False):
        text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(text, str):
            found[statement.target.id] = " ".join(text.split())
    return found
