"""Versions of the protocol that do not exist: 3 and 4 have other seals, and plans and updates under other keys.

with spoken(2, 3): ...                                             inside, this process speaks these versions
python tests/support/next_version.py 2,3 server run.toml ...       the command, speaking these
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from fedft.wire import forms, versions
from fedft.wire.forms import FORMS, Forms
from fedft.wire.header import Field


def _renamed(fields: tuple[Field, ...], to: str) -> tuple[Field, ...]:
    """The fields under keys of two letters."""
    return tuple(f._replace(key=to + f.key) for f in fields)


def _forms(to: str) -> Forms:
    now = FORMS[2]
    return Forms(_renamed(now.update, to), _renamed(now.plan, to), now.job)


SEALS = {2: 1, 3: 2, 4: 3}
ALL = {2: FORMS[2], 3: _forms("n"), 4: _forms("m")}


@contextmanager
def spoken(*numbers: int) -> Iterator[None]:
    """Inside, these versions are spoken, and no others."""
    seals, fields = ({n: table[n] for n in numbers} for table in (SEALS, ALL))
    with mock.patch.object(versions, "SEALS", seals), mock.patch.object(forms, "FORMS", fields):
        yield


if __name__ == "__main__":
    from fedft.cli.main import main

    with spoken(*(int(n) for n in sys.argv.pop(1).split(","))):
        main()
