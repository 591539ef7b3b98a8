"""The text of a roster with one table changed, so that what its operator wrote beside it stays."""

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedft.security.site_table import site_tables

ROSTER = """\
# The sites whose messages count. `fedft keys enrol` adds a [[site]] table, `fedft keys revoke` sets its `revoked`,
# `fedft keys remove` takes it out; these keys may be added by hand:
#   not_before, not_after   when the site counts, such as 2027-01-31T00:00:00Z
#   max_examples            the most examples one update of the site may claim (left out: 1000000)
"""

_HEAD = re.compile(r"^[ \t]*\[\[[ \t]*site[ \t]*\]\].*$", re.MULTILINE)
_TAIL = re.compile(r"\n(?:[ \t]*(?:#.*)?(?:\n|\Z))*\Z")
"""Empty lines and comments at the end of a text."""
_VALUE = r"""^[ \t]*{}[ \t]*=[ \t]*(\"\"\".*?\"\"\"|'''.*?'''|"[^"\n]*"|'[^'\n]*'|[^\s#]+)"""
"""A key at the beginning of a line, and its value."""


def with_values(text: str, index: int, values: Mapping[str, Any], path: Path) -> str:
    """The text with these values by key in its table number `index`; `path` is named in errors.

    A key that the table has gets its new value where it stands, the others stand right under its head. Where that is
    not what comes out (a table written in another way), the whole roster is written anew, without comments.
    """
    tables = site_tables(text, path)
    wanted = [dict(t, **values) if i == index else t for i, t in enumerate(tables)]
    heads = list(_HEAD.finditer(text))
    if len(heads) != len(tables):
        return _checked("", wanted)
    begin, end = heads[index].end(), heads[index + 1].start() if index + 1 < len(heads) else len(text)
    body, above = text[begin:end], ""
    for key, value in values.items():
        line = tomli_w.dumps({key: value}, multiline_strings=True).rstrip("\n")
        if key in tables[index]:
            body = re.sub(_VALUE.format(key), lambda _, line=line: line, body, count=1, flags=re.MULTILINE | re.DOTALL)  # type: ignore[misc]
        else:
            above += f"\n{line}"
    return _checked(text[:begin] + above + body + text[end:], wanted)


def without(text: str, indices: Collection[int], path: Path) -> tuple[str, dict[int, str]]:
    """(the text without the tables of these numbers, each such table's own text by number).

    A table ends with its last key: comments behind it, and in front of the next one, stay. `path` is named in errors.
    Where the text cannot be cut so, the rest is written anew, without comments.
    """
    tables = site_tables(text, path)
    wanted = [t for i, t in enumerate(tables) if i not in indices]
    heads = list(_HEAD.finditer(text))
    gone = {i: tomli_w.dumps({"site": [tables[i]]}, multiline_strings=True) for i in sorted(indices)}
    if len(heads) != len(tables):
        return _checked("", wanted), gone
    ends = [*(h.start() for h in heads[1:]), len(text)]
    kept, at = "", 0
    for i in gone:
        own = _TAIL.sub("\n", text[heads[i].start() : ends[i]])
        gone[i] = own
        kept, at = kept + text[at : heads[i].start()], heads[i].start() + len(own)
    return _checked(kept + text[at:].lstrip("\n"), wanted), gone


def _checked(edited: str, wanted: Sequence[Mapping[str, Any]]) -> str:
    """The edited text if it says what is wanted, else these tables written anew."""
    try:
        if tomllib.loads(edited).get("site", []) == wanted:
            return edited
    except tomllib.TOMLDecodeError:
        pass
    return ROSTER + "\n" + tomli_w.dumps({"site": wanted}, multiline_strings=True)
