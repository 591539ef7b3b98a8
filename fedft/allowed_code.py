"""Which code outside fedft may be imported by its name, "package.module:name".

A run file or run folder may be somebody else's, and importing a module runs it: so no name in a file is enough. A name
may be imported that the operator types on the command line (`--allow`, `--set`, ...), passes to
`fedft.simulate(allow=[...])` or lists in the site's own policy. Installed packages' entry points need no leave.
"""

import os
import re
from collections.abc import Iterable

NAME = re.compile(r"[^\W\d][\w.]*:[^\W\d]\w*")
"""What names an attribute of a module."""
VARIABLE = "FEDFT_ALLOW"
"""Environment variable of the names that are allowed, with blanks between; worker processes inherit it."""


def allow(texts: Iterable[str]) -> None:
    """Allow this process and its children to import each "module:name" that occurs in the texts."""
    found = [name for text in texts for name in NAME.findall(text)]
    os.environ[VARIABLE] = " ".join(dict.fromkeys([*os.environ.get(VARIABLE, "").split(), *found]))


def allows(name: str) -> bool:
    """Whether "module:name" may be imported."""
    return name in os.environ.get(VARIABLE, "").split()
