"""The command `fedft bench`: each way of ours beside the published or plain one, on this machine."""

import ast
import json
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fedft
from fedft import check
from fedft.errors import ConfigError, Interrupted

if TYPE_CHECKING:
    from fedft.benchmarks.results import Result, Row

# In this order `all` runs them; each is a file of fedft.benchmarks.
NAMES = (
    "replay", "ferret", "zo-step", "aggregate", "svd", "codec", "clients", "round", "step", "private-step", "slices",
    "server", "growth", "fleet", "start", "secure-sum", "guards", "audit-curve",
)  # fmt: skip
COLUMNS = ("what", "way", "time", "times faster", "spread", "of the limit")


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benches to run, or `all`; none: list them.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, seconds: whether it runs, not how fast.")
    ] = False,
    turns: Annotated[int, typer.Option(min=1, help="Times that each way is measured; medians are shown.")] = 7,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="All figures as JSON (default: fedft-runs/bench-NAME.json).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Measure our ways beside the published ones and the physical limit: CPU seconds of one thread, in turns."""
    if not names:
        said = {name: _headline(name) for name in NAMES}
        typer.echo(json.dumps(said) if as_json else "\n".join(f"{name:<10} {what}" for name, what in said.items()))
        return
    chosen = _chosen(names)
    file = out or Path("fedft-runs") / f"bench-{'-'.join(dict.fromkeys(names))}{'-quick' if quick else ''}.json"
    _write(file)
    if find_spec("numba") is None:
        typer.echo("numba is not installed: no figures of its kernels (pip install 'fedft[kernels]')", err=True)
    from fedft.benchmarks import results

    # peft asks transformers for a name that is being renamed: nothing that whoever reads the tables could change
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    began, measured = results.load(), list[results.Result]()
    try:
        fedft.starting()
        for name in chosen:
            typer.echo(f"{name} ...", err=True)
            found: results.Result = import_module(_module(name)).bench(quick=quick, turns=turns)
            measured.append(found)
            written = json.dumps(results.as_json(measured, (began, results.load())), indent=1)
            if not as_json:
                show(found)
            _write(file, written)
    except KeyboardInterrupt as e:
        kept = f"; what was measured is in {file}" if measured else ", and nothing was measured"
        raise Interrupted(f"interrupted{kept}") from e
    typer.echo(json.dumps(json.loads(written)) if as_json else f"figures  {file}")


def _chosen(names: Sequence[str]) -> list[str]:
    """The benches meant, each once."""
    try:
        for name in names:
            check.one_of(("all", *NAMES), bench=name)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return [name for name in NAMES if name in names or "all" in names]


def _write(file: Path, text: str = "") -> None:
    """Without a text it is only tried, before minutes are spent."""
    trial = not text and not file.exists()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "w" if text else "a", encoding="utf-8") as f:
            f.write(f"{text}\n" if text else "")
        if trial:
            file.unlink()
    except OSError as e:
        raise ConfigError(f"--out {file} cannot be written: {e.strerror}") from e


def _module(name: str) -> str:
    return f"fedft.benchmarks.{name.replace('-', '_')}"


def _headline(name: str) -> str:
    """First line of the docstring of a bench, read without importing it (it would load torch)."""
    spec = find_spec(_module(name))
    source = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def show(result: "Result") -> None:
    """Print what a bench compares and its table, whose last columns are the rows' facts."""
    from fedft.reports.terminal import table

    facts = list(dict.fromkeys(fact for r in result.rows for fact in r.facts))
    typer.echo(f"\n{result.name}: {result.title}")
    typer.echo(", ".join(f"{key.replace('_', ' ')} {_said(value)}" for key, value in result.settings.items()))
    cells = [_cells(r) | {fact: _number(r.facts.get(fact)) for fact in facts} for r in result.rows]
    table(_aligned(cells, (*COLUMNS, *facts)), (*COLUMNS, *facts), spare=(*reversed(facts), "spread"))


def _cells(r: "Row") -> dict[str, str]:
    return {
        "what": r.what,
        "way": r.way,
        "time": _time(r.seconds) if r.seconds else "",
        "times faster": _number(r.ratio),
        "spread": f"{r.spread:.0%}" if r.seconds else "",
        "of the limit": _number(r.of_limit),
    }


def _aligned(rows: Sequence[Mapping[str, str]], columns: Sequence[str]) -> list[dict[str, str]]:
    """Numbers to the right; the names of rows to the left, and said once per group."""
    wide = {c: max(len(c), *(len(r[c]) for r in rows)) for c in columns}
    shown = [{c: r[c] if c in ("what", "way") else r[c].rjust(wide[c]) for c in columns} for r in rows]
    for row, before in zip(shown[1:], rows, strict=False):
        row["what"] = "" if row["what"] == before["what"] else row["what"]
    return shown


def _time(seconds: float) -> str:
    """Three digits: 124 s, 10.1 ms, 3.40 us."""
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3)) if seconds >= u[1]), ("us", 1e-6))
    return f"{_number(seconds / size)} {unit}"


def _number(value: float | None) -> str:
    """Three digits, or all of those before the point; nothing for None."""
    if value is None:
        return ""
    if value == round(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.2g}"


def _said(value: Any) -> str:
    return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
