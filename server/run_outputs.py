"""What a run leaves for others to read: config.toml, summary.json and model/.

Nothing here is read again by the run. Each file is written whole or not at all (`fedft.durable`).
"""

import importlib.metadata
import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tomli_w

from fedft import durable
from fedft.arithmetic import tensors
from fedft.config import RunConfig
from fedft.contract import Drawers, Layout, State, Turn
from fedft.models import model_folder, tasks
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.models.model_card import RunFacts
from fedft.recipe import Recipe
from fedft.reports import columns, metric_log, plan_facts, spent_privacy, summary_file
from fedft.server import best_state, buffered, by_bits, pruned_models
from fedft.update import MEMORY_LOST, Plan

MODEL = "model"
"""Folder of the trained model in that of a run."""
# packages whose versions config.toml notes: they may change a run's numbers
VERSIONS = ("fedft", "flwr", "torch", "transformers", "peft", "numpy", "datasets")


def set_model_to(
    config: RunConfig,
    recipe: Recipe,
    layout: Layout,
    handle: ModelHandle,
    state: State,
    kept: Drawers | None = None,
) -> None:
    """Give the model's parameters the values of `state`, as a new client does that keeps the tensors `kept`."""
    rank, seed = 0 if recipe.space.rank_free else max(config.ranks()), config.server.seed
    plan = Plan("", state.version, state.version, rank=rank, learning_rate=config.local.learning_rate)
    plan = replace(plan, tensors=recipe.downlink(state, None, plan))
    held = recipe.receive(None, plan)
    recipe.start(handle, Turn(plan, held, tensors.digest(held), config.local, seed, seed, kept or {}))


def write_outputs(
    folder: Path, config: RunConfig, base: Base, handle: ModelHandle, state: State, clients: int,
    lines: list[dict[str, Any]], seconds: float, more: Mapping[str, Any] | None = None, held_back: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Write model/ and summary.json of a finished run; returns the summary.

    Args:
        folder: of the run.
        handle: the model, set to `state` before.
        clients: number of those that could take part.
        lines: of metrics.jsonl, at least the one of version 0.
        seconds: since this process opened the run; if it was resumed, the lines may say more.
        more: what else the summary says, by its key.
        held_back: why model/ is not written; "": it is.
    """
    summary = joined(summary_of(config, base, clients, state, lines, seconds), more or {})
    if held_back:
        summary |= {"model": None, "held_back": held_back}
    else:
        write_model(folder, config, base, handle, facts_of(config, lines, summary))
    _json(folder / summary_file.NAME, summary)
    return summary


def write_model(
    folder: Path, config: RunConfig, base: Base, handle: ModelHandle, run: RunFacts, inside: str = MODEL
) -> None:
    """Write model/ of a run, or the folder `inside` it that is called otherwise: the model as it stands in `handle`.

    With its tokenizer and a card that says `run`.
    """
    model_folder.write_adapter(folder / inside, config, base, handle, run)


def facts_of(config: RunConfig, lines: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> RunFacts:
    """What a model card says of a run: from the lines of its metrics.jsonl and its summary, as far as that is there."""
    return RunFacts(by_bits.clients(lines), spent_privacy.spent(config.privacy, lines), summary)


def joined(found: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The summary `found` with `more` in it; by how much forecasts were off, of time and of memory, is in both.

    >>> joined({"forecast_error": {"time": 0.5}, "rounds": 2}, {"forecast_error": {"memory": 0.1}})
    {'forecast_error': {'time': 0.5, 'memory': 0.1}, 'rounds': 2}
    """
    errors = {**found.get("forecast_error", {}), **more.get("forecast_error", {})}
    return {**found, **more, **({"forecast_error": errors} if errors else {})}


def summary_of(
    config: RunConfig, base: Base, clients: int, state: State, lines: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """The content of summary.json: how the run ended, first and last evaluation, bytes, seconds, digests.

    `cut_weights` is in how many rounds each client counted less than by its rows, by `max_share`; `memory_lost`, in how
    many it had lost what it kept between rounds. With virtual devices there are their seconds, and where somebody plans
    what `plan_facts.summary` says.
    The arguments are those of `write_outputs`.
    """
    measured = [line for line in lines if "evaluation" in line]
    ends = (
        [{n: line[n] for n in columns.measured(line)} for line in (measured[0], measured[-1])] if measured else [{}, {}]
    )
    m = config.model
    labels = {} if tasks.of(m.task).generates else {"labels": m.labels, "problem_type": m.problem_type}
    return {
        **labels,
        "strategy": config.strategy.name,
        "rounds": state.version,
        **_end(config, state.version, lines),
        "clients": clients,
        "seed": config.server.seed,
        "initial": ends[0],
        "final": ends[1],
        "columns": columns.fields(columns.occurring(measured)),
        "bytes_up": sum(line["bytes_up"] for line in lines),
        "bytes_down": sum(line["bytes_down"] for line in lines),
        "seconds": round(max(seconds, sum(map(metric_log.wall_seconds, lines))), 3),  # resumed: all of it
        **({"seconds_virtual": math.fsum(virtual)} if (virtual := metric_log.virtual_seconds(lines)) else {}),
        **plan_facts.summary(lines),
        **buffered.summary(lines),
        **spent_privacy.spent(config.privacy, lines),
        "refused": sum(len(line.get("refused", [])) for line in lines),
        "max_share": config.limits.max_share,
        MEMORY_LOST: dict(Counter(c for line in lines for c in line.get(MEMORY_LOST, ()))),
        "cut_weights": dict(Counter(c for line in lines for c in line.get("cut_weights", ()))),
        "state_digest": state.digest,
        "model": MODEL,
        "task": config.model.task,
        "base": base.source,
        "base_digest": base.digest,
        **pruned_models.summary(lines),
    }


def _end(config: RunConfig, version: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Why a run has ended; its last line has, with noise at the server, what the budget still holds."""
    last = lines[-1]
    if version >= config.server.rounds:
        return {"ended": "rounds"}
    if best_state.over(config, lines):
        return {"ended": "patience"}
    if "rounds_left" in last and (config.server.budget is None or last["rounds_left"] == 0):
        return {"ended": "max_epsilon", "stopped": "max_epsilon"}
    return {"ended": "budget"}


def never_took_part(clients: Iterable[str], lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Those of `clients` of whom no update counted in any of these lines of metrics.jsonl, with why not.

    Why is the last refusal of theirs, as code and reason, or that they were not asked. Nobody, where the lines hide who
    took part.
    """
    counted: set[str] = set()
    refused: dict[str, str] = {}
    for line in lines:
        if "participants" in line.get("hidden", ()):
            return {}
        counted.update(line.get("participants", ()))
        refused |= {r["client"]: f"{r['code']}: {r['reason']}" for r in line.get("refused", ())}
    return {c: refused.get(c, "was not asked") for c in sorted(clients, key=str.encode) if c not in counted}


def write_config(folder: Path, config: RunConfig, base: Base) -> None:
    """Write config.toml: the resolved run file under a comment with versions and the base's digest.

    Durable when it returns; from then on the folder is that of a run, which can only be resumed.
    """
    made = {p: _version(p) for p in VERSIONS} | {"python": platform.python_version()}
    head = "".join(f"# {k} {v}\n" for k, v in {**made, "base": base.digest}.items() if v)
    text = f"# The run as it was resolved, made with\n{head}\n{tomli_w.dumps(config.to_dict())}"
    durable.write(folder / "config.toml", text.encode())


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _json(path: Path, value: Any) -> None:
    durable.write(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())
