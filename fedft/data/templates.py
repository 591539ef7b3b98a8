"""Templates of text: "{field}" stands for a field of a record, and "[[ ]]" around what is left out where it is empty.

fill("Q: {question}[[ ({hint})]]\\nA: ", record, "train.jsonl, line 7")
"""

import re
from collections.abc import Mapping
from typing import Any

from fedft.data.records import is_plain, value_of
from fedft.errors import DataError

BLOCK = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")
DOUBLED = re.compile(r"(?<!\{)\{\{([^{}\n]+)\}\}(?!\})")


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """`template` with every "{field}" replaced by that field of `row` as text; null becomes nothing.

    Between the braces is a field's name and nothing else; "{{" and "}}" are literal braces, and values are taken as
    they are, whatever they hold. A block in "[[" and "]]" is left out when a field in it is empty or missing; brackets
    around no field are text, and blocks do not nest.

    Raises DataError, beginning with `where`, for a missing field outside a block, a value that is no text or number, a
    brace without its other, and a field of `row` in double braces.

    >>> fill("{q}[[ ({hint})]]?", {"q": "2 + 2"}, "row 1")
    '2 + 2?'
    >>> fill("{q}[[ ({hint})]]?", {"q": "Why", "hint": "so"}, "row 2")
    'Why (so)?'
    """
    text = []
    if doubled := [name for found in DOUBLED.findall(template) if (name := found.strip()) in row]:
        raise DataError(
            f"{where}: template {template!r} has the field {doubled[0]!r} in double braces, which are text; "
            f"wanted {single_braces(template)!r}"
        )
    for i, piece in enumerate(BLOCK.split(template)):  # odd ones were in brackets
        if lone_brace(piece):
            raise DataError(f"{where}: template {template!r} has a brace without its other; a literal one is doubled")
        names = [name for name in FIELD.findall(piece) if name]
        if i % 2 and not names:
            piece = f"[[{piece}]]"
        elif i % 2 and any(row.get(name) in (None, "") for name in names):
            continue
        text.append(FIELD.sub(lambda m: _value(row, m[1], where) if m[1] else m[0][0], piece))
    return "".join(text)


def lone_brace(template: str) -> bool:
    """Whether a template has a brace without its other; "{}" is text."""
    return bool(set("{}") & set(FIELD.sub("", template).replace("{}", "")))


def single_braces(template: str) -> str:
    """`template` with single braces where a name stands in double ones.

    >>> single_braces("Q: {{ question }} {a}")
    'Q: {question} {a}'
    """
    return DOUBLED.sub(lambda m: f"{{{m[1].strip()}}}", template)


def _value(row: Mapping[str, Any], name: str, where: str) -> str:
    """The field as text; "" for null. Raises DataError if it is missing, or is not `is_plain`."""
    value = value_of(row, name, where)
    if not is_plain(value):
        raise DataError(f"{where}: field {name!r} is a {type(value).__name__}, wanted text or a number")
    return "" if value is None else str(value)
