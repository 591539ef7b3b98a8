"""Tasks of EleutherAI's lm-evaluation-harness on a run's model: `fedft eval DIR --tasks arc_easy,hellaswag`.

The model is the one in memory, with the adapter of the newest state on it, as the harness's `HFLM`. What it finds is
written to lm-eval.json in the run folder. Names of tasks, and the YAML files that `--include` names, are the operator's
own: a task may bring Python code. Data of most tasks come from the Hugging Face hub, if they are not in its cache.
"""

import json
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedft import check, durable
from fedft.errors import ConfigError, in_one_line
from fedft.models import tasks as model_tasks
from fedft.simulations import workplace

FILE = "lm-eval.json"
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
"""Of the harness's libraries: they tell nobody what is evaluated here."""


def evaluate(
    folder: Path, names: Sequence[str], *, include: Path | None = None, limit: int | None = None
) -> dict[str, Any]:
    """What lm-eval.json then has: `results` by task, each number by its name, with how and on how much it was measured.

    Args:
        folder: of the run.
        names: of tasks, groups of tasks or tags.
        include: folder of YAML files with tasks of one's own, or one such file's folder; None: the harness's only.
        limit: rows of each task, the first so many; None: all.
    Raises:
        ConfigError: the harness is not installed, there is no such task, its data cannot be had, or a run whose model
            writes no text.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError("--tasks is carried out by lm-evaluation-harness; pip install 'fedft[lm_eval]'")
    if include is not None and not include.is_dir():
        raise ConfigError(f"--include {include}: no such folder; wanted one of YAML files that describe tasks")
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    known = _known(names, include)
    place, state = workplace.reopen(folder, data=False)
    if not model_tasks.of(place.config.model.task).generates:
        raise ConfigError(f"--tasks wants a model that writes text; {folder} is a run of {place.config.model.task}")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    place.handle.training(False)
    wrapped = HFLM(
        pretrained=place.handle.model, tokenizer=place.base.tokenizer, batch_size=place.config.eval.batch_size
    )
    found = simple_evaluate(wrapped, tasks=list(names), task_manager=known, limit=limit, log_samples=False)
    keys = ("results", "groups", "n-samples", "n-shot", "versions", "higher_is_better")
    said = {key: found[key] for key in keys if found and found.get(key)}
    said |= {"round": state.version, "state_digest": state.digest, "limit": limit}
    durable.write(folder / FILE, (json.dumps(said, indent=2, sort_keys=True, default=str) + "\n").encode())
    return said


def table(said: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each number of each task: `task`, `measure`, `value`, and its standard error where there is one."""
    rows = []
    for task, numbers in said["results"].items():
        for key, value in numbers.items():
            name, _, form = key.partition(",")
            if isinstance(value, float) and not name.endswith("_stderr"):
                error = numbers.get(f"{name}_stderr,{form}")
                rows.append({"task": task, "measure": name, "value": value})
                rows[-1] |= {"std. error": error} if isinstance(error, float) else {}
    return rows


def _known(names: Sequence[str], include: Path | None) -> Any:
    """The harness's list of tasks, which has all of these names and has loaded their data. Raises ConfigError."""
    from lm_eval.tasks import TaskManager

    for defaults in (False, True) if include is not None else (True,):  # its own are many, and take seconds to list
        known = TaskManager(include_path=include and str(include), include_defaults=defaults)
        if not (unknown := [name for name in names if name not in known.all_tasks]):
            break
    else:
        near = check.nearest(unknown[0], known.all_tasks)
        raise ConfigError(
            f"--tasks: there is no task {check.quoted(unknown[0])}{near}; --include names a folder of yours"
        )
    try:
        known.load(list(names))
    except Exception as e:  # the hub's, those of `datasets`, and of a task's own code
        offline = (
            "; the hub is not asked, HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else ""
        )
        raise ConfigError(f"--tasks {','.join(names)}: cannot be loaded{offline}: {in_one_line(e)[:300]}") from e
    return known
