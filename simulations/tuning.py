"""A race's tuning: every contender is tried with every setting of a grid, on rows and a seed that are not compared.

The tuning seed is the first that is not among the compared ones. Its held-out rows are drawn from those that none of
the compared runs holds out, and of a run file with a test file from the training rows: what the comparison reports on
has no part in what is chosen. All other rows are trained on, those that are reported on later among them, so that a
trial learns from as many as a compared run; of what it has learned nothing is kept but which setting was best.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.config import Data, RunConfig
from fedft.data import partition
from fedft.data.client_datasets import Rows
from fedft.errors import ConfigError
from fedft.privacy.tables import Audit
from fedft.randomness import philox
from fedft.simulations import virtual_clients
from fedft.simulations.contenders import TUNING, Contender, planned
from fedft.simulations.grid import Setting
from fedft.simulations.python_inputs import plain
from fedft.simulations.race_run import Outcome, Stopped, Task

OWNER = "_client"  # the field of tuning rows that names whose they are


@dataclass(frozen=True)
class Tuned:
    """What the tuning of one contender came to."""

    chosen: Setting
    """The setting with the least loss, the first of several; where none came to an end, the first of all."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Held-out loss at the end by setting, of those that came to an end."""
    stopped: Mapping[str, str] = field(default_factory=dict)
    """Why others did not."""
    why_stopped: str = ""
    """Why the contender cannot run: a trial that may yet come to an end, or none that did."""

    @property
    def trials(self) -> int:
        """How many settings were tried; none where there was but one."""
        return len(self.losses) + len(self.stopped)

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        chosen = "" if self.why_stopped else " ".join(self.chosen)
        return {"chosen": chosen, "trials": self.trials, "losses": {**self.losses}, "stopped": {**self.stopped}}


def trials(
    file: Path,
    c: Contender,
    settings: Sequence[Setting],
    seed: int,
    overrides: Sequence[str],
    out: Path,
    rows: Sequence[str],
) -> list[Task]:
    """The runs that tune a contender, one for each of its settings; none where there is but one setting.

    Args:
        file, overrides, out: of the race, as `race.race` has them.
        c: the contender.
        settings: what to try, each as overrides.
        seed: of the tuning.
        rows: the overrides that name the tuning's rows, see `written`.
    Raises:
        ConfigError: as `contenders.planned` does.
    """
    if len(settings) < 2:
        return []
    found = []
    for setting in settings:
        text = " ".join(setting)
        folder = out / TUNING / c.label / re.sub(r"[^\w.+=-]", "_", text, flags=re.ASCII)[:120]
        config = planned(file, c, seed, overrides, folder, tuning=[*setting, *rows])
        found.append(Task(c.label, seed, config, folder, text))
    if len({task.folder for task in found}) < len(found):
        raise ConfigError(f"--grid: two settings of {c.label} would have one folder; their values are too long")
    return found


def outcome(settings: Sequence[Setting], found: Mapping[str, Outcome]) -> Tuned:
    """What the tuning of one contender came to; `found` has what came of each trial by its setting as text."""
    texts = {" ".join(setting): setting for setting in settings}
    losses = {text: o["after"] for text in texts if not isinstance(o := found.get(text), Stopped) and o is not None}
    stopped = {text: o for text in texts if isinstance(o := found.get(text), Stopped)}
    reasons = {text: o.reason for text, o in stopped.items()}
    if paused := next((text for text, o in stopped.items() if not o.for_good), ""):
        why = f"{paused}: {reasons[paused]}"
    else:
        why = f"no setting came to an end: {next(iter(reasons.values()))}" if reasons and not losses else ""
    chosen = min(losses, key=lambda text: losses[text]) if losses else next(iter(texts))
    return Tuned(texts[chosen], losses, reasons, why)


def written(compared: Sequence[RunConfig], seed: int, out: Path) -> tuple[list[str], str]:
    """(overrides that name the tuning's rows, a sentence on them), the rows written to files below `out`.

    Args:
        compared: the configs of one contender's compared runs, one for each seed.
        seed: of the tuning.
        out: folder of the race.
    Raises:
        DataError: as `virtual_clients.whole_by_client` does.
        ConfigError: the compared runs hold out every row between them, or the files there are of other rows.
    """
    at = compared[0]
    about = json.dumps([at.to_dict()["data"], len(compared), seed], sort_keys=True)
    folder = out.resolve() / TUNING / f"rows-{hashlib.sha256(about.encode()).hexdigest()[:8]}"
    at = replace(at, server=replace(at.server, seed=seed))
    reported = _held_out(compared)
    parts = cut(virtual_clients.whole_by_client(at)[0], reported, at)
    without = sum(not held for _, held in parts.values())
    if without == len(parts):
        raise ConfigError(
            f"--grid: {len(compared)} seeds hold out every row between them, and none is left to tune on; fewer "
            "--seeds, a smaller [data] holdout, or a [data] test would do"
        )
    for place, name in enumerate(("train", "held_out")):
        lines = [json.dumps({**row, OWNER: client}, default=plain) for client, of in parts.items() for row in of[place]]
        _keep(folder / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    count = sum(len(held) for _, held in parts.values())
    whose = "training rows; the test file is not touched" if at.data.test else "rows that no compared seed holds out"
    said = f"seed {seed}, by the loss on {count} rows of {len(parts) - without} clients, from the {whose}"
    said += f"; {without} clients have none" if without else ""
    sources = [f"data.train={json.dumps(str(folder / 'train.jsonl'))}"]
    sources += [f"data.test={json.dumps(str(folder / 'held_out.jsonl'))}"]
    audit = ["audit.canaries=0", "audit.gate=[]"] if at.audit != Audit() else []
    return [*sources, "data.partition=natural", f"data.client={OWNER}", "data.min_rows=1", *audit], said


def cut(owned: Mapping[str, Rows], reported: Collection[str], config: RunConfig) -> dict[str, tuple[Rows, Rows]]:
    """(train, held out) by client: of each one's rows the share `[data] holdout`, at least one, is held out.

    Args:
        owned: all rows by client.
        reported: texts, as `key` has them, of rows that may not be held out; where a client has too few others, fewer
            are. One row is left to train on.
        config: of the tuning; its seed draws the rows. A `holdout` of 0 counts as the default.
    """
    share = config.data.holdout or Data.holdout
    found = {}
    for client, rows in owned.items():
        free = [row for row in rows if key(row) not in reported]
        count = min(max(1, int(len(rows) * share)), len(free), len(rows) - 1)
        drawn = philox.derive(config.server.seed, "tuning", client)
        held = partition.hold_out(free, count / len(free), drawn)[1] if count > 0 else []
        chosen = {id(row) for row in held}
        found[client] = ([row for row in rows if id(row) not in chosen], held)
    return found


def key(row: Mapping[str, Any]) -> str:
    """A text by which two rows are the same row."""
    return json.dumps(row, sort_keys=True, default=plain)


def _held_out(compared: Sequence[RunConfig]) -> set[str]:
    """The rows that compared runs are measured on; with a test file they are the same for all seeds."""
    configs = compared[:1] if compared[0].data.test is not None else compared
    parts = (virtual_clients.rows_by_client(replace(c, audit=Audit())) for c in configs)
    return {key(row) for of_seed in parts for _, held in of_seed.values() for row in held}


def _keep(path: Path, text: str) -> None:
    """Write a file that an earlier start may have written, with the same text. Raises ConfigError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write(path, text.encode())
    elif path.read_text(encoding="utf-8") != text:
        raise ConfigError(f"{path}: is of other rows than the run file's are now; name another --out")
