"""The text of a roster with one table changed, so that what its operator wrote beside it stays."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from fedft.security.site_table import site_tables

ROSTER = """\
# The sites whose messages count. `fedft keys enrol` adds a [[site]] table, `fedft keys revoke` sets its `revoked`;
# these keys may be added by hand:
#   not_before, not_after   when the site counts, such as 2027-01-31T00:00:00Z
#   max_examples            the most examples one update of the site may claim (left out: 1000000)
"""

_HEAD = re.compile(r"^[ \t]*\[\[[ \t]*site[ \t]*\]\].*$", re.MULTILINE)


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


def _checked(edited: str, wanted: Sequence[Mapping[str, Any]]) -> str:
    """The edited text if it says what is wanted, else these tables written anew."""
    try:
        if tomllib.loads(edited).get("site", []) == wanted:
            return edited
    except tomllib.TOMLDecodeError:
        pass
    return ROSTER + "\n" + tomli_w.dumps({"site": wanted}, multiline_strings=True)
