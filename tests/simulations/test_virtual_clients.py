"""Who has which rows of a data set: clients too small for `min_rows` are left out by name."""

import json
from pathlib import Path

import pytest

from fedft import run_file
from fedft.config import RunConfig
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError, DataError
from fedft.simulations import virtual_clients


def config(tmp_path: Path, **data: object) -> RunConfig:
    """Rows of a (1), b (2), c (3) and d (4)."""
    rows = [{"client": c, "prompt": "p", "response": str(i)} for n, c in enumerate("abcd", 1) for i in range(n)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_file.from_dict({"data": {"train": str(tmp_path / "rows.jsonl"), "holdout": 0.0, **data}})


@pytest.mark.parametrize(
    ("least", "most", "left", "small"),
    [(1, None, "abcd", ""), (3, None, "cd", "ab"), (2, 2, "bc", "a"), (4, 1, "d", "abc")],
)
def test_clients_too_small_take_no_part_and_are_named(
    tmp_path: Path, least: int, most: int | None, left: str, small: str
) -> None:
    more = {} if most is None else {"clients": most}
    owned, _ = virtual_clients.whole_by_client(config(tmp_path, min_rows=least, **more), counts := RowCounts())
    assert list(owned) == list(left)
    assert counts.clients_too_small == list(small)
    assert bool(counts.lines(96, len(owned))) == bool(small)


def test_where_nobody_has_enough_both_numbers_are_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"min_rows = 5: the largest of 4 clients has 4 rows"):
        virtual_clients.rows_by_client(config(tmp_path, min_rows=5))
    with pytest.raises(ConfigError, match="min_rows >= 1"):
        config(tmp_path, min_rows=0)
