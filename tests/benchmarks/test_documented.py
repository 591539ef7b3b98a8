"""BENCHMARKS.md says of each bench what is compared."""

import re
from pathlib import Path

from fedft.cli.bench import NAMES

ROOT = Path(__file__).parents[2]


def test_every_bench_has_its_row_in_the_order_in_which_all_runs_them() -> None:
    table = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8").partition("| bench |")[2].partition("\n\n")[0]
    assert tuple(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == NAMES
