"""The contract of a partitioner (`fedft.data.partition.Cut`)."""

from typing import Any

from fedft.data.partition import Cut
from fedft.suites.promises import kept

ROWS: list[dict[str, Any]] = [{"by": "abc"[n % 3], "text": "x" * (n % 7 + 1)} for n in range(60)]
CLIENTS, SEED = 3, 5  # as many clients as there are values of the field: a cut by it makes these


def _cut(cut: Cut, seed: int = SEED) -> dict[str, list[int]]:
    return cut(ROWS, "by", CLIENTS, seed)


def _every_row_has_one_client(cut: Cut) -> None:
    numbers = sorted(n for part in _cut(cut).values() for n in part)
    assert numbers == list(range(len(ROWS))), "rows are missing, or belong to several clients"


def _every_client_has_a_row(cut: Cut) -> None:
    found = _cut(cut)
    assert len(found) == CLIENTS, f"{len(found)} clients, wanted {CLIENTS}"
    assert not (empty := [c for c, part in found.items() if not part]), f"{empty} have no row"


def _the_same_seed_gives_the_same_cut(cut: Cut) -> None:
    assert _cut(cut) == _cut(cut), "two cuts of one seed differ"
    assert all(part == sorted(part) for part in _cut(cut).values()), "numbers do not ascend"


def _a_negative_seed_is_one_too(cut: Cut) -> None:
    assert sum(map(len, _cut(cut, -(2**40)).values())) == len(ROWS), "rows are missing"


PROMISES = {
    "every row has one client": _every_row_has_one_client,
    "as many clients as asked for, each with a row": _every_client_has_a_row,
    "the same seed gives the same cut, in ascending order": _the_same_seed_gives_the_same_cut,
    "any integer is a seed": _a_negative_seed_is_one_too,
}


def partitioner_contract(cut: Cut, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `cut`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, cut, getattr(cut, "__qualname__", "partitioner"), stop=stop)
