"""The field of a race: its contenders, the configs that they run with, their tuning and their runs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.reports import finished_runs
from fedft.reports.observers import Observer
from fedft.simulations import grid as grids
from fedft.simulations import race_run, side_by_side, tuning
from fedft.simulations.contenders import Contender, planned
from fedft.simulations.grid import Setting
from fedft.simulations.race_run import Outcome, Stopped, Task
from fedft.simulations.tuning import Tuned

Configs = Mapping[str, Sequence[RunConfig]]
"""The configs of each contender, by seed."""
Standing = tuple[dict[str, list[dict[str, Any]]], dict[str, str], bool]
"""(results by contender and seed, why others have none, whether no contender is still to come)."""


@dataclass(frozen=True)
class Field:
    """The contenders of a race, and what they have in common."""

    file: Path
    """Run file of all."""
    contenders: Sequence[Contender]
    seeds: int
    """How many are compared, from 0; the next one is that of the tuning."""
    out: Path
    """Folder of the race."""
    overrides: Sequence[str]
    """Hold for all, the contenders' own win."""
    grid: grids.Grid
    jobs: int
    """How many runs are at work at a time."""
    observe: Observer

    def planned(self) -> dict[str, list[RunConfig]]:
        """The configs of each contender by seed, with the first setting of the grid; every setting is checked.

        Raises ConfigError for what cannot run so.
        """
        found = {}
        for c in self.contenders:
            first, *others = grids.settings(self.grid, c)
            found[c.label] = self.of_seeds(c, first, free=[*self.grid], aloud=True)
            for setting in others:
                self._config(c, 0, setting, free=[*self.grid])
        timed = [label for label, of in found.items() if (of[0].server.budget or "").startswith("seconds")]
        if timed and self.jobs > 1:
            raise ConfigError(
                f"--jobs {self.jobs}: {timed[0]} has a budget of seconds, which wants the machine to itself; --jobs 1"
            )
        if "local.steps" in self.grid and all(of[0].server.budget is None for of in found.values()):
            said = "--grid local.steps without a budget: in as many rounds, more steps are more training; see --budget"
            self.observe("note", {"text": said})
        return found

    def of_seeds(
        self, c: Contender, setting: Setting, *, free: Sequence[str] = (), aloud: bool = False
    ) -> list[RunConfig]:
        """The configs of a contender with a setting, by seed; `free` as `contenders.planned` has it.

        `aloud`: say what is changed for it. Raises ConfigError for a run that cannot be.
        """
        first: dict[str, Any] = {"note": lambda text: self.observe("note", {"text": text})} if aloud else {}
        return [self._config(c, seed, setting, free=free, **({} if seed else first)) for seed in range(self.seeds)]

    def _config(self, c: Contender, seed: int, setting: Setting, **how: Any) -> RunConfig:
        chosen = replace(c, overrides=(*c.overrides, *setting))
        return planned(self.file, chosen, seed, self.overrides, self.out / c.label / f"seed-{seed}", **how)

    def tuned(self, configs: Configs) -> tuple[dict[str, Tuned], dict[str, Any]]:
        """(what the tuning of each contender came to, the same for files and pages); nothing without a grid."""
        if not self.grid:
            return {}, {}
        trials: dict[str, list[Task]] = {}
        rows: dict[str, str] = {}
        made: dict[str, tuple[list[str], str]] = {}
        for c in self.contenders:
            data = repr((configs[c.label][0].data, configs[c.label][0].audit))
            if data not in made:
                made[data] = tuning.written(configs[c.label], self.seeds, self.out)
            sources, rows[c.label] = made[data]
            settings = grids.settings(self.grid, c)
            trials[c.label] = tuning.trials(self.file, c, settings, self.seeds, self.overrides, self.out, sources)
        found: dict[str, dict[str, Outcome]] = {label: {} for label in trials}
        tasks = [task for of in trials.values() for task in of]
        for task, outcome in self._outcomes(tasks, before=0, behind=len(self.contenders) * self.seeds):
            found[task.label][task.setting] = outcome
        tuned = {c.label: tuning.outcome(grids.settings(self.grid, c), found[c.label]) for c in self.contenders}
        unlike = len({*rows.values()}) > 1
        said = "; ".join(f"{label}: {text}" for label, text in rows.items()) if unlike else next(iter(rows.values()))
        of_each = {
            label: {**t.to_dict(), "at_an_end": grids.at_an_end(self.grid, t.chosen) if t.losses else []}
            for label, t in tuned.items()
        }
        return tuned, {"grid": dict(self.grid), "seed": self.seeds, "rows": said, "contenders": of_each}

    def run(self, configs: Configs, stopped: Mapping[str, str], trials: int) -> Iterator[Standing]:
        """How the race stands, whenever a contender has come to an end that had not before, and at the end.

        Args:
            configs: of those who run.
            stopped: why others do not.
            trials: how many runs there were before.
        """
        tasks = [
            Task(label, seed, config, self.out / label / f"seed-{seed}")
            for label, of in configs.items()
            for seed, config in enumerate(of)
        ]
        found: dict[str, dict[int, dict[str, Any]]] = {label: {} for label in configs}
        why: dict[str, tuple[int, str]] = {}
        new = {task.label for task in tasks if race_run.left_by(task) is None}

        def standing(complete: bool) -> Standing:
            done = {c: [of[s] for s in sorted(of)] for c, of in found.items() if c not in why and len(of) == self.seeds}
            said = {c: f"seed {seed}: {reason}" for c, (seed, reason) in why.items()}
            return done, {**stopped, **said}, complete

        ended: set[str] = set()
        for task, outcome in self._outcomes(tasks, trials, 0, wanted=lambda task: task.label not in why):
            if isinstance(outcome, Stopped):
                why[task.label] = min(why.get(task.label, (task.seed, outcome.reason)), (task.seed, outcome.reason))
            else:
                found[task.label][task.seed] = finished_runs.known(outcome, task.config)
            if task.label in why or len(found[task.label]) == self.seeds:
                ended.add(task.label)
                if task.label in new and len(ended) < len(configs):
                    yield standing(complete=False)
        yield standing(complete=True)

    def _outcomes(self, tasks: Sequence[Task], before: int, behind: int, **how: Any) -> Iterator[tuple[Task, Outcome]]:
        """Each task with its outcome, as they end; `before` and `behind` them come so many runs of the race."""
        numbered = [replace(task, number=before + n) for n, task in enumerate(tasks, 1)]
        of = before + len(tasks) + behind
        return side_by_side.outcomes(
            numbered, self.jobs, lambda kind, info: self.observe(kind, {**info, "of": of}), **how
        )
