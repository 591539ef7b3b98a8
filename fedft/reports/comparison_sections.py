"""The parts of a comparison's page behind its table, as HTML: paired differences, tuning, client by client."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from fedft.reports import paired, per_client
from fedft.training.metrics.loss import LOSS

Cell = str | tuple[str, str]
"""A cell's text, or its text and its class."""
TUNED = (
    "Before, each method was tried with every setting of a grid at the same budget, baselines too, and kept the one "
    "with the least loss. The rows by which it was chosen are none that the table reports on, and the seed is none "
    "that it compares; of the trials nothing is kept but the setting."
)
PAIRED = (
    "How much higher a method's held-out loss is at the end than that of {against}; below 0 it is better. Differences "
    "are taken seed by seed, and client by client (each one's own held-out rows, its mean over seeds), then averaged: "
    "mean ± standard error, and the 95 % interval by Student's t from three on. Clients of one run share a model, so "
    "the spread over them says how unlike they are rather than how sure the mean is."
)
PICKED = (
    " {against} was picked as the best by these same losses, which makes its lead look a little surer than it is; "
    "--against NAME names one beforehand."
)
ALONE = (
    "Each client's loss on its own held-out rows, beside that of a model that it trained alone; means over seeds. "
    "A client gains where its loss is lower. Named are those that lose most, or gain least."
)
OWN_MODELS = (
    " Of `local` the two are not the same: over seeds each client's model is measured on everybody's rows, as in the "
    "table, over clients each one's on its own rows."
)
NOBODY_ALONE = "Who gains and who loses is said where `local` is among the methods: every client trained alone."


def table(heads: Sequence[Cell], rows: Sequence[Sequence[Cell]]) -> str:
    """An HTML table of texts, which are escaped; a wide one is scrolled, also by keys."""

    def line(cells: Sequence[Cell], tag: str) -> str:
        pairs = [cell if isinstance(cell, tuple) else (cell, "") for cell in cells]
        return "<tr>" + "".join(f"<{tag}{f' class={c}' if c else ''}>{escape(t)}</{tag}>" for t, c in pairs) + "</tr>\n"

    body = "".join(line(row, "td") for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table><thead>{line(heads, "th")}</thead><tbody>\n{body}</tbody></table></div>'
    )


def note(text: str) -> str:
    """A paragraph of small print."""
    return f'<p class="note">{escape(text)}</p>'


def tuning(comparison: Mapping[str, Any]) -> str:
    """The settings that the tuning chose; "" where there was none."""
    if not (of := comparison.get("tuning")):
        return ""
    grid = "; ".join(f"{key} = {', '.join(values)}" for key, values in of["grid"].items())
    heads: list[Cell] = ["method", ("chosen setting", "text"), "trials", "least loss", "largest", ("stopped", "text")]
    rows: list[list[Cell]] = []
    for method, t in of["contenders"].items():
        losses = [*t["losses"].values()]
        ends = [LOSS.short(min(losses)), LOSS.short(max(losses))] if losses else ["-", "-"]
        stopped = "; ".join(f"{setting}: {why}" for setting, why in t["stopped"].items())
        rows.append([method, (t["chosen"] or "-", "text"), str(t["trials"]), *ends, (stopped or "-", "text")])
    said = note(f"{TUNED} Grid: {grid}. Tuned with {of['rows']}. {at_an_end(of)}")
    return f"<h2>Tuned settings</h2>\n{table(heads, rows)}\n{said}"


def at_an_end(tuning: Mapping[str, Any]) -> str:
    """Whose chosen setting has the least or the largest value of a key, as a sentence; "" where nobody's has."""
    ends = [f"{m} ({', '.join(keys)})" for m, t in tuning["contenders"].items() if (keys := t.get("at_an_end"))]
    return f"Chosen at an end of the grid, beyond which may be better: {'; '.join(ends)}." if ends else ""


def pairs(comparison: Mapping[str, Any]) -> str:
    """The paired differences to one method; "" where there is no other."""
    if not comparison["paired"]:
        return ""
    heads = ["method", "over seeds", "95 % interval", "seeds", "over clients", "95 % interval", "clients"]
    rows: list[list[Cell]] = []
    for row in comparison["paired"]:
        cells: list[Cell] = [row["method"]]
        for key in ("seeds", "clients"):
            mean, _, interval = paired.said(row[key]).partition(", ")
            cells += [mean, interval or "-", str(row[key]["n"]) if row[key] else "0"]
        rows.append(cells)
    against = comparison["against"]
    text = PAIRED.format(against=against) + (PICKED.format(against=against) if comparison["picked"] else "")
    said = note(text + (OWN_MODELS if per_client.ALONE in comparison["results"] else ""))
    return f"<h2>Paired differences to {escape(against)}</h2>\n{table(heads, rows)}\n{said}"


def clients(comparison: Mapping[str, Any], drawn: str) -> str:
    """Who gains and who loses beside training alone; `drawn` is the HTML of its figure, "" without one."""
    if not comparison["clients"]:
        alone = per_client.ALONE in comparison["results"]
        return "" if alone or not comparison["rows"] else f"<h2>Client by client</h2>\n{note(NOBODY_ALONE)}"
    heads: list[Cell] = ["method", "clients", "gain", "mean difference", ("worst: alone, with it", "text")]
    rows: list[list[Cell]] = []
    for row in comparison["clients"]:
        worst = [f"{w['client']}: {LOSS.short(w['alone'])}, {LOSS.short(w['with'])}" for w in row["worst"]]
        gain, mean = f"{100 * row['gain']:.0f} %", f"{'+' if row['mean'] >= 0 else '-'}{LOSS.short(abs(row['mean']))}"
        rows.append([row["method"], str(row["clients"]), gain, mean, ("; ".join(worst), "text")])
    return f"<h2>Client by client</h2>\n{drawn}{table(heads, rows)}\n{note(ALONE)}"
