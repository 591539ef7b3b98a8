"""What a path in a run file means: of records, of a model; one place of it, and what is there becomes absolute."""

import glob
import os
import re
from pathlib import Path
from typing import Any

from fedft import quickstart
from fedft.errors import ConfigError

BUILT_IN = (quickstart.BASE, quickstart.ROWS)


def resolved(said: Any, folder: Path, where: str, *, patterns: bool) -> Any:
    """A path with its `$VARIABLES` and `~` written out, absolute where something is there; so for each of a list.

    Absolute in the run's own config.toml, the run can be evaluated from any working folder. Names of what is built in,
    hub ids and whatever is not a text stay as they are.

    Args:
        said: what the file says.
        folder: where that file lies: relative paths begin there, or else in the working folder.
        where: begins the message of an error: file, table and key.
        patterns: whether a path with "*" stands for the files that match it.
    Raises:
        ConfigError: a variable that is not set.
    """
    if isinstance(said, list):
        return [resolved(one, folder, where, patterns=patterns) for one in said]
    if not isinstance(said, str) or said in BUILT_IN:
        return said
    value = os.path.expanduser(os.path.expandvars(said))
    if left := re.search(r"\$\{?(\w+)", value):
        raise ConfigError(f"{where} = {value!r}: the variable {left[1]} is not set")
    if not value or Path(value).is_absolute():
        return value
    there = (p for p in (folder / value, Path(value)) if p.exists() or (patterns and _matches(p)))
    return next((str(p.resolve()) for p in there), value)


def _matches(path: Path) -> bool:
    """Whether a path is a pattern of files, and there are some."""
    return glob.has_magic(str(path)) and any(glob.iglob(str(path), recursive=True))
