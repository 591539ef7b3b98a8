"""The table for other programs: what CSV reads back, and what LaTeX takes."""

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from made_up_runs import compared

from fedft.reports import tables

EVIL = "50%_{x} & $y$ \\end{tabular} #~^<>"


def test_csv_has_every_number_with_all_its_digits() -> None:
    done = compared("fedit", "flora")
    found = list(csv.DictReader(io.StringIO(tables.as_csv(done))))
    assert [line["method"] for line in found] == ["fedit", "flora", "local", "central"]
    for line, row in zip(found, done["rows"], strict=True):
        assert [float(line[k]) for k in ("after", "after_sd", "bytes")] == [
            row[k] for k in ("after", "after_sd", "bytes")
        ]
    (pair,) = [r for r in done["paired"] if r["method"] == "flora"]
    assert float(found[1]["difference_mean"]) == pair["seeds"]["mean"]
    assert found[0]["difference_mean"] == ""
    assert done["against"] == "fedit"


def test_a_name_is_no_formula_of_a_spreadsheet() -> None:
    found = list(csv.reader(io.StringIO(tables.as_csv(compared("=1+1")))))
    assert found[1][0] == "'=1+1"


def test_latex_has_a_line_per_method_and_escapes_what_others_wrote() -> None:
    text = tables.as_latex(compared(EVIL, "flora"))
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 4
    columns = len(re.search(r"tabular}{(l r*|lr*)}", text)[1])  # type: ignore[index]
    assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in lines)
    assert text.count(r"\end{tabular}") == 1
    assert r"50\%\_\{x\} \& \$y\$ \textbackslash{}end\{tabular\}" in text
    assert r"\textbf" in lines[0]
    assert text.isascii()


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_is_typeset(tmp_path: Path) -> None:
    body = tables.as_latex(compared(EVIL, "flora"))
    (tmp_path / "a.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}{body}\\end{{document}}"
    )
    done = subprocess.run(["pdflatex", "-halt-on-error", "a.tex"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
