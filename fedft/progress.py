"""What a person sees of a run: a bar while it works (on a terminal), a row per state, and where the model lies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

COLUMNS = (
    ("round", 6), ("loss", 8), ("accuracy", 9), ("train loss", 11), ("up", 10), ("down", 10), ("clients", 8),
    ("refused", 8), ("seconds", 8),
)  # fmt: skip


class Progress:
    """Context of one run: `observe` takes the engine's events."""

    def __init__(self, *, quiet: bool, rounds: int) -> None:
        """`quiet`: nothing at all. Off a terminal there is no bar, and the rows are plain text."""
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
        self._header = False

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def observe(self, kind: str, info: Mapping[str, Any]) -> None:
        """One event of the engine."""
        if kind == "preparing":
            self._bar.stop()  # the base model may be built now, with a bar of its own
            return
        self._bar.start()
        if kind == "round":
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
            self._bar.update(self._task, completed=info["version"])

    def _row(self, line: Mapping[str, Any]) -> None:
        if not self._header:
            self.out.print("  ".join(f"{name:>{width}}" for name, width in COLUMNS), style="bold")
            self._header = True
        seconds = sum(line["seconds"].values())
        cells = (
            f"{line['version']}/{self._rounds}",
            _number(line.get("loss"), ".4f"),
            _number(line.get("accuracy"), ".4f"),
            _number(line.get("train_loss"), ".4f"),
            size(line["bytes_up"]),
            size(line["bytes_down"]),
            str(len(line.get("participants", []))) if "round" in line else "-",
            str(len(line.get("refused", []))),
            f"{seconds:.1f}",
        )
        self.out.print("  ".join(f"{cell:>{width}}" for cell, (_, width) in zip(cells, COLUMNS, strict=True)))

    def finish(self, summary: Mapping[str, Any], folder: Path) -> None:
        """The end of a run: what was reached, where the model lies and how to load it."""
        before, after = summary["initial"], summary["final"]
        if "loss" in before and "loss" in after:
            self.out.print(
                f"\n{escape(summary['strategy'])}: held-out loss {before['loss']:.4f} -> "
                f"[bold]{after['loss']:.4f}[/bold], accuracy {before['accuracy']:.4f} -> {after['accuracy']:.4f}; "
                f"{size(summary['bytes_up'])} up, {size(summary['bytes_down'])} down in all; "
                f"{summary['seconds']:.1f} s",
                markup=True,
            )
        model = folder / "model"
        self.out.print(f"run    {folder}  (metrics.jsonl, summary.json, TensorBoard events)")
        self.out.print(f"model  {model}")
        if (model / "adapter_config.json").exists():
            kind = "CausalLM" if summary["task"] == "causal-lm" else "SequenceClassification"
            call = f"AutoPeftModelFor{kind}.from_pretrained('{model}')"
            self.out.print(f'load   python -c "from peft import *; model = {call}"')
        else:
            self.out.print(f"load   fedft export {folder} --merged --to FOLDER, then transformers' from_pretrained")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def size(n: int) -> str:
    """Bytes for people: 17.3 kB, 1.2 MB (powers of ten)."""
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print rows of values under the named columns."""
    shown = [c for c in columns if any(c in row for row in rows)]
    drawn = Table(box=box.SIMPLE)
    for c in shown:
        drawn.add_column(
            c.replace("_", " "), no_wrap=True, justify="right" if isinstance(rows[0].get(c), float) else "left"
        )
    for row in rows:
        drawn.add_row(*(_cell(row.get(c)) for c in shown))
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to cut at
    console.print(drawn)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)
