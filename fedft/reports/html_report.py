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
from fedft.reports import (
    audits,
    columns,
    comparison_sections,
    energy,
    generations,
    per_client,
    plans,
    plots,
    race_figures,
)
from fedft.reports.comparison import BASELINES, readable, shown_columns
from fedft.reports.comparison_sections import Cell
from fedft.reports.finished_runs import gather
from fedft.reports.page_style import STYLE
from fedft.reports.race_figures import Figure
from fedft.training.metrics.loss import LOSS

NO_PLOTS = 'Plots need matplotlib: pip install "fedft[report]", then fedft report on this folder.'
HEADS = {
    "before": "loss before",
    "after": "loss after",
    "up": "up, client and round",
    "down": "down, client and round",
    "bytes": "bytes in all",
    "energy": "energy, estimated",
    "error": "aggregation error",
}
"""Headings of columns that are no metric; the others have their own names."""


def write(
    folders: Sequence[Path], to: Path, *, watts: float | None = None, against: str | None = None
) -> dict[str, Any]:
    """Write the page that compares the runs and races in these folders to the file `to`; returns the comparison.

    Arguments as, and ConfigError where, `finished_runs.gather` has them; also where `to` cannot be written.
    """
    comparison = gather(folders, watts=watts, against=against)
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
            comparison_sections.note(_legend(comparison)),
            comparison_sections.pairs(comparison),
            comparison_sections.tuning(comparison),
            f"<h2>Variants</h2>{_facts(variants)}" if variants else "",
            "<h2>Plots</h2>",
            _plots(comparison),
            comparison_sections.clients(comparison, _gains(comparison)),
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
    cells_of = readable(comparison)
    shown = [c for c in shown_columns(rows) if any(c in cells for cells in cells_of)]
    racing = [r["after"] for r in rows if r["method"] not in BASELINES]
    heads = {name: columns.of(name, said).label for name in columns.occurring(rows)} | HEADS
    body: list[list[Cell]] = []
    for row, cells in zip(rows, cells_of, strict=True):
        best = racing and row["after"] == min(racing) and row["method"] not in BASELINES
        body.append([(cells.get(c, "-"), "best" if best and c in ("method", "after") else "") for c in shown])
    return comparison_sections.table([heads.get(c, c) for c in shown], body)


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
        "|applied - exact| / |exact|, mean over rounds. "
        + (energy.assumption(comparison["watts"]) if comparison.get("watts") else "")
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
    drawn = "".join(_figure(figure) for figure in race_figures.others(comparison))
    note = comparison_sections.note("Lines are means over seeds, bands one standard deviation.")
    return f'<ul class="key">{key}</ul>\n{_losses(comparison)}<div class="plots">{drawn}</div>{note}'


def _losses(comparison: Mapping[str, Any]) -> str:
    """The learning curves, of which a reader picks what they are drawn over; in print there are all."""
    of = race_figures.of_loss(comparison)
    picks = "".join(
        f'<label><input type="radio" name="x" id="x-{name}"{" checked" if n == 0 else ""}>by {name}</label>'
        for n, name in enumerate(of)
    )
    return f'<div class="pick">{picks}\n{"".join(_figure(f, f"x-{name}") for name, f in of.items())}</div>\n'


def _gains(comparison: Mapping[str, Any]) -> str:
    """The figure of who gains and who loses; "" where nobody trained alone, or nothing can be drawn."""
    differences = per_client.against_alone(comparison["results"])
    if not differences or not plots.available():
        return ""
    return _figure(race_figures.gains(differences, list(comparison["curves"])), "one")


def _figure(of: Figure, kind: str = "") -> str:
    """A figure with its caption, and what its axes leave out."""
    note = f"<small>{escape(of.note)}</small>" if of.note else ""
    caption = f"<figcaption>{escape(of.caption)}{note}</figcaption>"
    return f"<figure{f' class={kind}' if kind else ''}>{_image(of.svg, of.caption)}{caption}</figure>\n"


def _image(svg: str, alt: str, kind: str = "") -> str:
    """An SVG inside the page; as an image, so that names inside it clash with no other's."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{escape(alt)}"{f" class={kind}" if kind else ""} src="data:image/svg+xml;base64,{data}">\n'
