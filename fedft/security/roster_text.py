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


def with_value(text: str, index: int, key: str, value: bool, path: Path) -> str:
    """The text with `key = value` in its table number `index`, right under its head; `path` is named in errors.

    Where that is not what comes out (a table written in another way, or one that has the key), the whole roster is
    written anew, without comments.
    """
    tables = site_tables(text, path)
    wanted = [dict(t, **{key: value}) if i == index else t for i, t in enumerate(tables)]
    heads = list(_HEAD.finditer(text))
    end = heads[index].end() if len(heads) == len(tables) else 0
    return _checked(f"{text[:end]}\n{key} = {str(value).lower()}{text[end:]}", wanted)


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
