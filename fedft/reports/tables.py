"""The table of a comparison as files for other programs: CSV with all digits, and LaTeX that needs booktabs."""

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from fedft.reports import columns, energy, paired
from fedft.reports.comparison import BASELINES, readable

SIGNS = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
}
"""What LaTeX takes for something else, and how it is said."""
SPREADS = ("mean", "se", "low", "high", "n")


def numbers(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every number of each method's row, and of its paired differences, by name.

    `energy_wh` is the estimate in Wh; `difference_` and `client_difference_` begin the names of the paired ones, None
    for the method that the others are compared with. `setting` is what its tuning chose.
    """
    pairs = {row["method"]: row for row in comparison["paired"]}
    chosen = comparison["tuning"].get("contenders", {})
    found = []
    for row in comparison["rows"]:
        line = dict(row)
        if comparison["watts"] is not None and row.get("work") is not None:
            line["energy_wh"] = energy.watt_hours(row["work"], comparison["watts"])
        for name, key in (("difference", "seeds"), ("client_difference", "clients")):
            spread = pairs.get(row["method"], {}).get(key) or {}
            line |= {f"{name}_{part}": spread.get(part) for part in SPREADS}
        line |= {"setting": chosen.get(row["method"], {}).get("chosen")} if chosen else {}
        found.append(line)
    return found


def as_csv(comparison: Mapping[str, Any]) -> str:
    """A line per method with its `numbers`, under a line of their names."""
    lines = numbers(comparison)
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in line.items()} for line in lines)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A text that a spreadsheet does not take for a formula; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def as_latex(comparison: Mapping[str, Any]) -> str:
    r"""A `tabular` of loss, metrics, paired difference and cost; the best federated method in bold.

    To be read with `\input`, after `\usepackage{booktabs}`.
    """
    rows, said = comparison["rows"], comparison["columns"]
    pairs = {row["method"]: row for row in comparison["paired"]}
    metrics = columns.occurring(rows)
    best = paired.best(rows, BASELINES)
    heads = {"method": "method", "after": "loss"} | {name: columns.of(name, said).label for name in metrics}
    heads |= {"difference": f"difference to {comparison['against']}"} if pairs else {}
    heads |= {"bytes": "bytes", "seconds": "seconds", "energy": "energy (est.)"}
    body = []
    for cells in readable(comparison):
        method = cells["method"]
        cells["difference"] = paired.said(pairs[method]["seeds"]) if method in pairs else "-"
        texts = [latex(cells.get(name, "-")) for name in heads]
        texts[:2] = [rf"\textbf{{{text}}}" if method == best else text for text in texts[:2]]
        body.append(" & ".join(texts) + r" \\")
    return "\n".join(
        [
            "% by fedft race; \\usepackage{booktabs}",
            rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            r"\toprule",
            " & ".join(map(latex, heads.values())) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def latex(text: str) -> str:
    r"""A text as LaTeX shows it: signs that mean something else there are escaped, minus signs before digits are long.

    >>> print(latex("ffa_lora & 5%: -0.25"))
    ffa\_lora \& 5\%: $-$0.25
    """
    escaped = "".join(SIGNS.get(sign, sign) for sign in text)
    return re.sub(r"(?<![\w$])-(?=\d)", "$-$", escaped)
