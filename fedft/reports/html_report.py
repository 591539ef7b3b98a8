"""A comparison as one HTML page: what was compared, the table, the plots.

Nothing is loaded from elsewhere and no script runs, so the page can be mailed, archived and printed. Text from users
(names of methods, models and files) is escaped.
"""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import ConfigError, RunPaused
from fedft.reports import audits, columns, generations, plans, plots
from fedft.reports.comparison import BASELINES, readable, shown_columns
from fedft.reports.finished_runs import gather
from fedft.training.metrics.loss import LOSS

NO_PLOTS = 'Plots need matplotlib: pip install "fedft[report]", then fedft report on this folder.'
HEADS = {
    "before": "loss before",
    "after": "loss after",
    "up": "up, client and round",
    "down": "down, client and round",
    "bytes": "bytes in all",
    "error": "aggregation error",
}
"""Headings of columns that are no metric; the others have their own names."""
STYLE = """
:root { color-scheme: light }
body { font: 300 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #222;
  max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; background: #fff }
h1 { font-size: 1.7rem; font-weight: 300; margin: 0 0 1rem }
h2 { font-size: 1.1rem; font-weight: 400; margin: 2rem 0 .6rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 0 } dt { color: #767676 }
dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ececec }
th { font-weight: 400; color: #767676; vertical-align: bottom; white-space: normal; border-color: #bbb }
th:first-child, td:first-child { text-align: left; padding-left: 0 } td { font-weight: 400 }
td.best { font-weight: 700 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1.2rem }
.maps { display: flex; flex-wrap: wrap; gap: 1.2rem 2.5rem; margin: .6rem 0 1.2rem }
.maps img { width: auto; max-width: 100% }
h3 { font-size: 1rem; font-weight: 400; margin: 1.4rem 0 .3rem }
figure { margin: 0; break-inside: avoid } figure img { width: 100%; height: auto } figcaption { color: #555 }
ul.key { list-style: none; margin: 0 0 1rem; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem }
.swatch { width: 42px; height: 14px; vertical-align: middle; margin-right: .5rem }
p.note { color: #767676; font-size: .87rem; max-width: 46rem } code { font-size: .9em }
@page { margin: 12mm }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 10px } h1 { font-size: 20px }
  table { font-size: 8px } p.note { font-size: 9px } th, td { padding: 3px 5px }
  .plots { grid-template-columns: 1fr 1fr } }
"""


def write(folders: Sequence[Path], to: Path) -> dict[str, Any]:
    """Write the page that compares the runs and races in these folders to the file `to`; returns the comparison.

    Raises ConfigError as `finished_runs.gather` does, and where `to` cannot be written.
    """
    comparison = gather(folders)
    try:
        behind = plans.section(plans.of_folders(folders), _image) + audits.section(folders)
        behind += generations.section(folders)
        durable.write(to, page(comparison, behind).encode())
    except RunPaused as e:  # there is no run that could be resumed
        raise ConfigError(f"--to {to}: cannot be written: {getattr(e.__cause__, 'strerror', e)}") from e
    return comparison


def page(comparison: Mapping[str, Any], behind: str = "") -> str:
    """The page, HTML text, of a comparison as `comparison.compare` gives it; `behind` is HTML that ends it."""
    facts = dict(comparison["about"])
    contenders = facts.pop("contenders", {})
    variants = {c: " ".join(o) for c, o in contenders.items() if [k for k in o if not k.startswith("strategy.name=")]}
    done, wanted = len(comparison["rows"]), len(contenders)
    title = f"{' · '.join(r['method'] for r in comparison['rows'][:6])}{' · …' if done > 6 else ''}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta http-equiv="Content-Security-Policy" '
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
            f"<title>fedft race: {escape(title)}</title><style>{STYLE}</style></head><body>",
            "<h1>Federated fine-tuning, method by method</h1>",
            "" if comparison["complete"] else f"<p><b>{done} of {wanted} methods are done.</b></p>",
            _facts(comparison["stopped"]),
            _facts(facts),
            "<h2>Results</h2>",
            _table(comparison),
            f'<p class="note">{escape(_legend(comparison))}</p>',
            f"<h2>Variants</h2>{_facts(variants)}" if variants else "",
            "<h2>Plots</h2>",
            _plots(comparison),
            behind,
            "</body></html>\n",
        ]
    )


def _facts(facts: Mapping[str, Any]) -> str:
    """Names and values as a definition list; "" for none."""
    if not facts:
        return ""
    return "<dl>" + "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"


def _table(comparison: Mapping[str, Any]) -> str:
    """The rows as a table; the method with the smallest loss after, baselines aside, in bold."""
    rows, said = comparison["rows"], comparison.get("columns")
    cells_of = readable(rows, said)
    shown = [c for c in shown_columns(rows) if any(c in cells for cells in cells_of)]
    racing = [r["after"] for r in rows if r["method"] not in BASELINES]
    heads = {name: columns.of(name, said).label for name in columns.occurring(rows)} | HEADS
    head = "".join(f"<th>{escape(heads.get(c, c))}</th>" for c in shown)
    body = ""
    for row, cells in zip(rows, cells_of, strict=True):
        best = racing and row["after"] == min(racing) and row["method"] not in BASELINES
        body += "<tr>" + "".join(
            f"<td{' class=best' if best and c in ('method', 'after') else ''}>{escape(cells.get(c, '-'))}</td>"
            for c in shown
        )
        body += "</tr>\n"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _legend(comparison: Mapping[str, Any]) -> str:
    """What the columns of the table mean, as text."""
    rows, said = comparison["rows"], comparison.get("columns")
    looks = [columns.of(name, said) for name in columns.occurring(rows)]
    measured = " and ".join(c.heading for c in (LOSS, *looks))
    seeds = max((r["seeds"] for r in rows), default=1)
    spread = f"Mean ± sample standard deviation over {seeds} seeds. " if seeds > 1 else "One seed. "
    return (
        f"{spread}{measured[:1].upper()}{measured[1:]} on held-out rows, mean over clients; gain is the loss before "
        f"less the loss after. {_ways((LOSS, *looks))}"
        "Bytes are those of training: up and down per client asked and round, and all clients added up. Steps are "
        "local optimiser steps one after the other; seconds are of training and aggregation. Aggregation error is "
        "|applied - exact| / |exact|, mean over rounds."
    )


def _ways(looks: Sequence[columns.Column]) -> str:
    """Which way each metric is better, as a sentence for each way."""
    found = {way: [c.heading for c in looks if c.better == way] for way in ("lower", "higher")}
    return "".join(f"Better is {way}: {', '.join(names)}. " for way, names in found.items() if names)


def _plots(comparison: Mapping[str, Any]) -> str:
    """The key and the figures, or how to get them where matplotlib is not installed."""
    if not plots.available():
        return f"<p>{escape(NO_PLOTS)}</p>"
    if not comparison["curves"]:
        return ""
    look = plots.styles(list(comparison["curves"]))
    key = "".join(f"<li>{_image(plots.swatch(s), '', 'swatch')}{escape(label)}</li>" for label, s in look.items())
    drawn = "".join(
        f"<figure>{_image(svg, caption)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, svg in plots.figures(comparison)
    )
    note = "Lines are means over seeds, bands one standard deviation. A method that sends nothing is a level line."
    return f'<ul class="key">{key}</ul>\n<div class="plots">{drawn}</div><p class="note">{note}</p>'


def _image(svg: str, alt: str, kind: str = "") -> str:
    """An SVG inside the page; as an image, so that names inside it clash with no other's."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}"{f" class={kind}" if kind else ""} src="data:image/svg+xml;base64,{data}">\n'
