"""A run on the terminal: a bar while it works, a row per state, where the model is at the end. And plain tables."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fedft.models import other_tools
from fedft.reports import columns, metric_log, run_header, spent_privacy
from fedft.reports.quantities import size
from fedft.training.metrics.loss import ACCURACY, LOSS, PERPLEXITY, TOKEN_LOSS

FACTS = (("train loss", 11), ("up", 10), ("down", 10), ("clients", 8), ("refused", 8), ("seconds", 8))
"""Columns after those of the metrics, with their widths: of a run without further metrics, a row has 78 letters."""
WIDTH = 80  # letters of a line of plain text


class Progress:
    """The context in which one run is shown; its `observe` is an observer of the run."""

    def __init__(self, *, quiet: bool, rounds: int) -> None:
        """Rows go to stdout, the bar to stderr; off a terminal there is no bar, and the rows are plain text.

        Args:
            quiet: show nothing at all.
            rounds: how many the run has.
        """
        # names of clients and folders are a user's: what looks like markup in them is text
        self.out = Console(quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)
        # one console where both are the terminal, or rows would be written into the bar
        err = self.out if self.out.is_terminal else Console(stderr=True, quiet=quiet)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=err,
            transient=True,
            disable=quiet or not err.is_terminal,
        )
        self._task = self._bar.add_task("loading", total=rounds, note="")
        self._rounds = rounds
        self._measured: list[str] = []
        self._header: Mapping[str, Any] | None = None

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def observe(self, kind: str, info: Mapping[str, Any]) -> None:
        """Show one event of the run; see `fedft.reports.observers`."""
        if kind == "preparing":
            self._bar.stop()  # the base model may be built now, with a bar of its own
            return
        if kind == "ended":
            return  # the bar may be gone already
        self._bar.start()
        if kind == "header":
            self._header = info
            self.out.print("\n".join(run_header.lines(info)) + "\n")
        elif kind == "round":
            self._bar.update(
                self._task, description=f"round {info['round'] + 1}", note=f"0/{len(info['asked'])} clients"
            )
            self._asked, self._answered = len(info["asked"]), 0
        elif kind == "admitted":
            self._answered += 1
            loss = info["metrics"].get("loss")
            said = f"{self._answered}/{self._asked} clients, {info['client']}" + (f" {loss:.3f}" if loss else "")
            self._bar.update(self._task, note=said, completed=info["round"] + self._answered / self._asked)
        elif kind == "evaluating":
            self._bar.update(self._task, note=f"evaluating on {len(info['asked'])} clients")
        elif kind == "line":
            self._row(info)
            if self._header and "round" in info:  # the first one that this process has done
                if said := run_header.forecast(self._header, info):
                    self.out.print(f"{'':8}{said}")
                self._header = None
            self._bar.update(self._task, completed=info["version"])

    def _row(self, line: Mapping[str, Any]) -> None:
        """Print a line of metrics.jsonl as a row, under new headings where it has other metrics than the last one."""
        names = list(dict.fromkeys([LOSS.name, ACCURACY.name, *self._measured, *columns.measured(line)]))
        names = [name for name in names if name not in (TOKEN_LOSS.name, PERPLEXITY.name)]  # said at the end
        looks = [columns.of(name) for name in names]
        round_ = max(6, 2 * len(str(self._rounds)) + 1)
        heads = [("round", round_), *((c.heading, max(8, len(c.heading) + 1)) for c in looks), *FACTS]
        if names != self._measured:  # the first line, or a metric that has not been there before
            self.out.print("".join(f"{name:>{width}}" for name, width in heads), style="bold")
            self._measured = names
        seconds = metric_log.wall_seconds(line)
        cells = (
            f"{line['version']}/{self._rounds}",
            *(c.text(line.get(c.name)) for c in looks),
            LOSS.text(line.get("train_loss")),
            size(line["bytes_up"]),
            size(line["bytes_down"]),
            str(len(line.get("participants", []))) if "round" in line else "-",
            str(len(line.get("refused", []))),
            f"{seconds:.1f}",
        )
        self.out.print("".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, heads, strict=True)))

    def finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """Show the end of a run: losses and bytes, where the model is and how to load it.

        Args:
            summary: the run's summary.json.
            folder: of the run.
        """
        before, after = summary["initial"], summary["final"]
        if LOSS.name in before and LOSS.name in after:
            self.out.print(
                f"\n{escape(summary['strategy'])}: held-out loss {LOSS.text(before[LOSS.name])} -> "
                f"[bold]{LOSS.text(after[LOSS.name])}[/bold], mean over clients",
                markup=True,
            )
            others = [
                columns.of(n) for n in columns.measured(after) if n in before and n not in (LOSS.name, *columns.OWN)
            ]
            told = [f"{c.heading} {c.text(before[c.name])} -> {c.text(after[c.name])}" for c in others]
            whole = ", ".join(one.replace(" ", "\0") for one in told)  # a metric stays in one line
            for part in textwrap.wrap(whole, WIDTH - 7, break_on_hyphens=False):
                self.out.print(f"{'':7}{part}".replace("\0", " "))
        traffic = f"{size(summary['bytes_up'])} up, {size(summary['bytes_down'])} down"
        virtual = f", {summary['seconds_virtual']:.1f} virtual s" if "seconds_virtual" in summary else ""
        self.out.print(f"       {traffic} in all; {summary['seconds']:.1f} s{virtual}")
        if "privacy" in summary:
            self.out.print(f"       {spent_privacy.sentence(summary)}")
        if summary.get("ended") == "budget":
            self.out.print(f"the run ended at its budget, after {summary['rounds']} rounds")
        elif summary.get("ended") == "patience":
            self.out.print(f"the run ended at [server] patience, after {summary['rounds']} rounds")
        elif summary.get("ended") == "max_epsilon":
            self.out.print(f"the run ended at [privacy] max_epsilon, after {summary['rounds']} rounds")
        if best := summary.get("best"):
            look = columns.of(best["metric"], summary.get("columns"))
            where = f", {folder / best['model']}" if best["model"] else ""
            self.out.print(f"best   {look.heading} {look.text(best['value'])}, of round {best['round']}{where}")
        model = folder / "model"
        self.out.print(f"run    {folder}  (model/, metrics.jsonl, summary.json, events/)")
        if (model / "adapter_config.json").exists():
            call = other_tools.load_call(
                summary["task"], str(model), summary.get("labels"), summary.get("problem_type")
            )
            self.out.print(f'load   python -c "from peft import *; model = {call}"')
        else:
            self.out.print(f"load   fedft export {folder} --merged --to FOLDER, then transformers' from_pretrained")

    def at_work(self, what: str, note: str) -> None:
        """Show that something goes on behind the end of a run."""
        self._bar.update(self._task, description=what, note=note)
        self._bar.start()

    def compare(self, found: Mapping[str, float], summary: Mapping[str, Any]) -> None:
        """Show the run's loss beside those of `fedft.simulations.alone_and_central.losses`, in one line."""
        self._bar.stop()
        alone, own, central = (f"{found[k]:.3f}" for k in ("alone", "own", "central"))
        told = f"alone {alone} ({own} on own rows), together {summary['final'][LOSS.name]:.3f}"
        self.out.print(f"loss   {told}, all in one place {central}")


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], spare: Sequence[str] = ()) -> None:
    """Print rows of values as a table.

    Args:
        rows: values by column.
        columns: names from left to right; those that no row has are not shown.
        spare: names of columns that a narrow terminal leaves out, the first one first; a line says which were.
    """
    shown = [c for c in columns if any(c in row for row in rows)]
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to cut at
    left_out = []
    wide = console.options.update(max_width=10_000)
    for c in (c for c in spare if c in shown):
        if Measurement.get(console, wide, _drawn(rows, shown)).maximum <= console.width:
            break
        shown.remove(c)
        left_out.append(c.replace("_", " "))
    console.print(_drawn(rows, shown))
    if left_out:
        console.print(f"left out, for the width of the terminal: {', '.join(left_out)}")


def _drawn(rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> Table:
    """The rows as rich's table of these columns."""
    drawn = Table(box=box.SIMPLE)
    for c in shown:
        drawn.add_column(
            c.replace("_", " "), no_wrap=True, justify="right" if isinstance(rows[0].get(c), float) else "left"
        )
    for row in rows:
        drawn.add_row(*(_cell(row.get(c)) for c in shown))
    return drawn


def _cell(value: Any) -> str:
    """A value as text: floats with four digits, nothing for None."""
    if isinstance(value, bool):
        return "yes" if value else "-"
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
