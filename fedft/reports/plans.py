"""The part "Plans" of a page: for each run that plans, or times its clients, who was asked for what and who was slow.

Ranks by client and round, and by module in each client's last plan; a row for each client; predicted against measured
seconds. A run of which no line says anything of the kind is left out.
"""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from fedft.reports import metric_log, plan_facts, plots
from fedft.reports.heat_map import Cell, heat_map
from fedft.reports.metric_log import Line
from fedft.reports.plan_facts import Turn
from fedft.update import Shape

SHOWN = ("rank", "batch", "bits", "steps", "ratio")
HEADS = ("client", "turns", *SHOWN, "predicted s", "measured s", "measured / predicted", "set the pace")
NOTE = (
    "Rank, batch, bits, steps and ratio are those of the client's last plan; of unlike ranks the largest is shown. "
    "Seconds are from the letter to the answer, medians over the turns. The client whose update came last of those "
    "that counted set the round's pace."
)
Draw = Callable[[str, str], str]
"""(SVG, caption) -> the HTML of an image."""


def of_folders(folders: Sequence[Path]) -> list[tuple[str, list[Any]]]:
    """(label, lines of metrics.jsonl) of the runs in these folders, of a race those of each method's first seed."""
    found = []
    for folder in folders:
        races = sorted(folder.glob("*/seed-0")) if (folder / "race.json").exists() else [folder]
        for run in races:
            label = run.parent.name if run is not folder else folder.resolve().name
            found.append((label, metric_log.read(run / "metrics.jsonl")))  # none where a method has no such run
    return found


def section(runs: Sequence[tuple[str, Sequence[Line]]], image: Draw) -> str:
    """The HTML of the part, "" where there is nothing to say. `image` makes an image of an SVG and a caption."""
    parts = [_of_run(label, lines, image) for label, lines in runs]
    if not any(parts):
        return ""
    return f'<h2>Plans</h2>\n{"".join(parts)}<p class="note">{escape(NOTE)}</p>'


def _of_run(label: str, lines: Sequence[Line], image: Draw) -> str:
    found = list(plan_facts.turns(lines))
    if not found:
        return ""
    drawn = [(svg, caption) for svg, caption in _figures(found) if svg]
    figures = "".join(f"<figure>{image(svg, c)}<figcaption>{escape(c)}</figcaption></figure>" for svg, c in drawn)
    said = plan_facts.summary(lines)
    facts = f"{said['plans_changed']} times a client was asked for something else than before. " if said else ""
    if error := said.get("forecast_error"):
        facts += f"Seconds were off by {100 * error['time']:.0f} % of the forecast, in the median."
    return (
        f"<h3>{escape(label)}</h3>\n<p>{escape(facts)}</p>\n"
        f'<div class="maps">{figures}</div>\n{_table(found, plan_facts.pace(lines))}\n'
    )


def _figures(found: Sequence[Turn]) -> list[tuple[str, str]]:
    """(SVG, caption) of each figure; "" in place of one that there is nothing for."""
    planned = [t for t in found if t.plan]
    predicted = [(t.predicted_s, t.measured_s) for t in found if t.predicted_s and t.measured_s]
    against = plots.against(predicted) if predicted and plots.available() else ""
    return [
        (_by_round(planned), "Rank by client and round"),
        (_by_module(planned), "Rank by module in each client's last plan; a frame: it does not learn"),
        (against, "Measured against predicted seconds of each turn"),
    ]


def _by_round(found: Sequence[Turn]) -> str:
    cells = {(t.client, str(t.round)): Cell(_largest(t)) for t in found if _largest(t)}
    clients = list(dict.fromkeys(c for c, _ in sorted(cells, key=lambda at: at[0].encode())))
    rounds = [str(n) for n in sorted({t.round for t in found})]
    return heat_map(clients, rounds, cells, f"rounds {rounds[0]} to {rounds[-1]}") if cells else ""


def _by_module(found: Sequence[Turn]) -> str:
    """Of modules that some plan names; "" where none does."""
    last = {t.client: t.plan for t in found}
    named = {m for plan in last.values() for m in (*plan.get("ranks", {}), *plan.get("chosen", ()))}
    if not named:
        return ""
    shapes = {
        c: Shape(plan.get("rank", 0), plan.get("ranks", {}), tuple(plan.get("chosen", ()))) for c, plan in last.items()
    }
    modules, clients = sorted(named, key=_in_order), sorted(shapes, key=str.encode)
    cells = {(m, c): Cell(shapes[c].of(m), shapes[c].learns(m)) for m in modules for c in clients}
    return heat_map(modules, clients, cells, f"{len(clients)} clients in order of name")


def _in_order(module: str) -> list[tuple[bool, int, str]]:
    """The key that sorts modules by the numbers in their names, not digit by digit."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in module.split(".")]


def _largest(turn: Turn) -> float:
    return float(max(turn.plan.get("rank", 0), *turn.plan.get("ranks", {}).values(), 0))


def _table(found: Sequence[Turn], pace: dict[str, int]) -> str:
    """A row for each client; columns of which no client has anything are left out."""
    rows = []
    for client in sorted({t.client for t in found}, key=str.encode):
        own = [t for t in found if t.client == client]
        last = next((t for t in reversed(own) if t.plan), own[-1])
        said = {**last.plan, "rank": _largest(last) or None}
        cells = [client, str(len(own)), *(_number(said.get(k)) for k in SHOWN)]
        for seconds in ([t.predicted_s for t in own], [t.measured_s for t in own], [t.off for t in own]):
            known = [s for s in seconds if s is not None]
            cells.append(_number(median(known)) if known else "")
        rows.append([*cells, str(pace[client]) if client in pace else ""])
    kept = [n for n in range(len(HEADS)) if any(row[n] for row in rows)]
    head = "".join(f"<th>{escape(HEADS[n])}</th>" for n in kept)
    body = "".join("<tr>" + "".join(f"<td>{escape(row[n])}</td>" for n in kept) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else ""
