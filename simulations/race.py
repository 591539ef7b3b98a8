"""Methods side by side: the same data, clients and budget, several seeds; one table, learning curves, one page.

Beside the federated contenders run two baselines that need no federation, `local` and `central` (`baselines.py`). With
a grid each contender, baselines too, is tuned before (`tuning.py`), and runs with what was best for it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import ConfigError
from fedft.reports import energy, finished_runs, html_report, tables
from fedft.reports.comparison import compare
from fedft.reports.observers import Audience, Observers
from fedft.simulations import grid as grids
from fedft.simulations.contenders import CSV, LATEX, PAGE, TABLE, Contender, check_labels
from fedft.simulations.race_field import Field


def race(
    file: Path,
    contenders: Sequence[Contender],
    seeds: int,
    out: Path,
    *,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    observe: Observers = (),
    grid: Sequence[str] = (),
    jobs: int = 1,
    against: str | None = None,
    watts: float | None = None,
) -> dict[str, Any]:
    """Run every contender with seeds 0 .. seeds - 1 under `out` and return the comparison, saved as race.json.

    Beside it race.html shows the same to people, race.csv to tables and race.tex to papers; all are written anew after
    each contender. Finished runs found under `out` are not run again, so an interrupted race goes on where it stopped,
    in its tuning too. A contender that cannot go on has no row but a reason under `stopped`; the others run all the
    same.

    Args:
        file: run file of all.
        contenders: who runs.
        seeds: how many, from 0.
        out: folder of the runs and the results.
        budget: `[server] budget` of all; None: what the run file says.
        overrides: hold for all contenders, their own win.
        observe: one or several; hears `note` (text), and of each run `run`, `preparing`, `step` (share from 0 to 1,
            note), and `ran` (result) or `stopped` (reason), with contender, seed, setting, number and of, how many.
        grid: texts `table.key=value,value`: what is tried for each contender before, with seed `seeds`; see `grid`.
        jobs: runs at a time, each in a process of its own if there are several: a script that calls this then needs
            `if __name__ == "__main__":` around what it does. The numbers are the same but for seconds.
        against: the contender that others are compared with in pairs; None: the one that comes out best.
        watts: that this machine is assumed to draw at work; None: see `energy.watts`.
    Raises:
        ConfigError: no contenders, labels that cannot be told apart or name no folder, nothing to measure on, a
            strategy that cannot run so, an `out` that cannot be written or has runs of another config, a grid that is
            none; before any work.
    """
    observe = Audience(observe)
    check_labels(contenders, seeds)
    if against is not None and against not in (labels := [c.label for c in contenders]):
        raise ConfigError(f"--against {against!r}: no contender is called so; there are {', '.join(labels)}")
    overrides = [*overrides, *([f"server.budget={budget}"] if budget is not None else [])]
    field = Field(file, contenders, seeds, out, overrides, grids.parsed(grid), max(1, jobs), observe)
    configs = field.planned()
    watts = energy.watts((c.model.device for of in configs.values() for c in of), watts)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--out {out}: cannot be written: {e.strerror}") from e
    tuned, about_tuning = field.tuned(configs)
    stopped = {label: f"tuning: {why}" for label, t in tuned.items() if (why := t.why_stopped)}
    if tuned:
        chosen = {c.label: c for c in contenders if c.label not in stopped}
        configs = {label: field.of_seeds(c, tuned[label].chosen) for label, c in chosen.items()}
    facts = {"run file": file.name, **finished_runs.about([config for of in configs.values() for config in of])}
    facts["contenders"] = {c.label: list(c.overrides) for c in contenders}
    done: dict[str, Any] = {}
    trials = sum(t.trials for t in tuned.values())
    for results, reasons, complete in field.run(configs, stopped, trials):
        beside = max((r["jobs"] for of in results.values() for r in of if "jobs" in r), default=1)
        said = f"measured with up to {beside} runs side by side: longer than alone, and so is the energy"
        facts |= {"seconds": said} if beside > 1 else {}
        done = compare(facts, results, reasons, complete=complete, watts=watts, against=against, tuning=about_tuning)
        _save(done, out)
    return done


def _save(comparison: Mapping[str, Any], out: Path) -> None:
    durable.write(out / TABLE, json.dumps(comparison, indent=1).encode() + b"\n")
    durable.write(out / CSV, tables.as_csv(comparison).encode())
    durable.write(out / LATEX, tables.as_latex(comparison).encode())
    durable.write(out / PAGE, html_report.page(comparison).encode())
