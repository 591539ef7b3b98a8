"""Which rows are a client's: partitioners that cut one data set into clients, and rows held out for a test.

`partition` applies the partitioner that a run file names: `natural`, `iid` and `dirichlet` here (cut by Flower's), or
another package's under the entry point "fedft.partitioners". Row numbers count from 0.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch

from fedft import check, registry
from fedft.data.records import Row, is_plain
from fedft.errors import ConfigError, DataError, FedftError, in_one_line
from fedft.registry import Choice

WHOLE = re.compile(r"-?\d+\.0+")
"""A whole number as tables write it that were floats on their way."""


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test): floor(fraction * len(rows)) rows are drawn at random for the test; both keep the order of `rows`.

    The same number of rows, fraction and seed draw the same rows. Raises ValueError unless 0 <= fraction <= 1.

    >>> train, test = hold_out([{"n": n} for n in range(10)], 0.25, seed=7)
    >>> len(train), len(test)
    (8, 2)
    """
    check.between(0, 1, fraction=fraction)
    drawn = set(_shuffled(len(rows), seed)[: int(len(rows) * fraction + 1e-9)])  # 0.29 * 100 is 28.999...
    return [r for i, r in enumerate(rows) if i not in drawn], [r for i, r in enumerate(rows) if i in drawn]


class Cut(Protocol):
    """A partitioner: a way to cut one data set into clients."""

    def __call__(self, rows: Sequence[Row], field: str | None, clients: int | None, seed: int) -> dict[str, list[int]]:
        """Row numbers by client, ascending: every row has one client, every client at least one row.

        Args:
            rows: the whole data set.
            field: name of the field by whose values rows are cut, where they are cut by one.
            clients: how many clients to make, from 1 to the number of rows; None: the partitioner decides.
            seed: decides all that is random.
        Raises:
            DataError: the rows cannot be cut so.
        """


def partition(
    rows: Sequence[Row], *, how: Choice, field: str | None, clients: int | None, alpha: float, seed: int
) -> dict[str, list[int]]:
    """Row numbers by client, ascending: every row has one client, every client at least one row.

    Args:
        rows: the whole data set.
        how: the partitioner (`Cut`), by name or with options, as `[data] partition` says it.
        field, clients, seed: see `Cut`.
        alpha: concentration for a "dirichlet" without an option of its own.
    Raises:
        DataError: more clients than rows; a row without `field`; every draw left some client without a row.
        ConfigError: no such partitioner, not these options, or one of another package that fails.

    >>> rows = [{"by": "austen"}, {"by": "melville"}, {"by": "austen"}]
    >>> partition(rows, how="natural", field="by", clients=None, alpha=1.0, seed=7)
    {'austen': [0, 2], 'melville': [1]}
    """
    name, options = registry.named(how, "partitioner")
    if name == "dirichlet":
        options = {"alpha": alpha, **options}
    if name != "natural" and clients is not None:
        counted(rows, clients, name)
    cut: Cut = registry.partitioners.make(name, options)
    try:
        return cut(rows, field, clients, seed)
    except Exception as e:
        if name in registry.partitioners.built_in or isinstance(e, FedftError):
            raise
        raise ConfigError(f"[data] partition {name!r} with clients = {clients}: {in_one_line(e)}") from e


def natural() -> Cut:
    """The partitioner with one client per value of the field; a client is called by its value, as text.

    Its cut raises DataError for a row without a value, and where two values are the same number, as "7" and "7.0".
    """

    def cut(rows: Sequence[Row], field: str | None, clients: int | None, seed: int) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for number, text in enumerate(texts(rows, field, "natural")):
            found.setdefault(text, []).append(number)
        for text in found:
            if WHOLE.fullmatch(text) and (plain := text.partition(".")[0]) in found:
                raise DataError(f"partition 'natural': {field!r} says {plain!r} and {text!r}; wanted one form of them")
        return dict(sorted(found.items()))

    return cut


def iid() -> Cut:
    """The partitioner with clients of equal size, up to one row, of shuffled rows: "client-0", "client-1", ...

    >>> cut = iid()([{}, {}, {}, {}], field=None, clients=2, seed=7)
    >>> {name: len(rows) for name, rows in cut.items()}
    {'client-0': 2, 'client-1': 2}
    """

    def cut(rows: Sequence[Row], field: str | None, clients: int | None, seed: int) -> dict[str, list[int]]:
        count, order = counted(rows, clients, "iid"), _shuffled(len(rows), seed)
        size, more = divmod(len(rows), count)  # the first `more` clients have one row more
        at = [k * size + min(k, more) for k in range(count + 1)]
        return called([sorted(order[a:b]) for a, b in pairwise(at)])

    return cut


def called(parts: list[list[int]]) -> dict[str, list[int]]:
    """The parts by name: client-0, client-1, ..."""
    return {f"client-{k}": part for k, part in enumerate(parts)}


def counted(rows: Sequence[Row], clients: int | None, how: str) -> int:
    """`clients`, if it is a number from 1 to that of the rows. Raises DataError."""
    if clients is None:
        raise DataError(f"partition {how!r} needs [data] clients: expected 1 to {len(rows)} clients, got none")
    if not 1 <= clients <= len(rows):
        raise DataError(f"partition {how!r} of {len(rows)} rows: expected 1 to {len(rows)} clients, got {clients}")
    return clients


def owner(row: Row, field: str | None) -> str | None:
    """Whose a row is, as text; None where it says no one. A number is one owner however it is written.

    >>> [owner({"by": value}, "by") for value in ("7", 7, 7.0, 7.5, None)]
    ['7', '7', '7', '7.5', None]

    Raises DataError for a list, an object or bytes.
    """
    value = None if field is None else row.get(field)
    if not is_plain(value):
        raise DataError(f"field {field!r} says whose a row is; it is a {type(value).__name__}, wanted text or a number")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if value is None else str(value)


def texts(rows: Sequence[Row], field: str | None, how: str) -> list[str]:
    """The owner that every row says. Raises DataError for a row without one."""
    found = []
    for number, row in enumerate(rows, 1):
        if (text := owner(row, field)) is None:
            why = f"is null in {field!r}" if field in row else f"has no {field!r}; there are {', '.join(map(str, row))}"
            raise DataError(f"partition {how!r}: row {number} {why}")
        found.append(text)
    return found


def _shuffled(n: int, seed: int) -> list[int]:
    """The numbers 0 to n - 1 in an order that the seed decides."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
