"""`README.md` of a model's folder: what it is, on how many rows it learned, what was spent, how it is used.

Its front matter is what the hub reads: the base model where it is one of the hub's, the library that loads it, tags. A
licence is not ours to say. No client is named.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.config import RunConfig
from fedft.models import base_note, export, lower_rank, other_tools, stored_quantization, tasks
from fedft.models.load import Base
from fedft.models.other_tools import HERE, Lines
from fedft.reports import spent_privacy

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LIBRARY = {"adapter": "peft", **dict.fromkeys(other_tools.WHOLE, "transformers")}
"""What loads a folder of this kind; nothing but fedft loads the others."""


@dataclass(frozen=True)
class RunFacts:
    """What a run's folder says of its model; a site that writes its own knows the rounds alone."""

    by_bits: Mapping[str, int] = field(default_factory=dict)
    """How many clients had the base in how many bits; empty: all as the run file says."""
    spent: Mapping[str, Any] = field(default_factory=dict)
    """Of privacy, see `fedft.reports.spent_privacy.spent`; empty: nobody knows."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """As in `summary.json`: `rounds`, `clients`, `state_digest`, `header`..., those that are known."""


UNKNOWN = RunFacts()


def write(
    folder: Path, kind: str, config: RunConfig, base: Base, run: RunFacts, lower: Mapping[str, Any] | None = None
) -> None:
    """Write the card of what lies in `folder`; a card that is there is written over.

    Args:
        folder: of the model.
        kind: as `model_folder.write` calls it.
        config: of the run, as resolved.
        base: that it was trained on.
        run: what else is known.
        lower: as `lower_rank.lowered` gives it, where the rank was lowered.
    """
    name = export.base_name(base)
    parts = [
        front_matter(kind, name),
        f"# {config.strategy.name} on {Path(name).name}",
        f"Trained by fedft {version('fedft')}, federated, on the base `{name}`{_precision(config, base, run)}.",
        _table(config, run),
        _base(kind, base),
        _privacy(config, run),
        *([_lowered(lower)] if lower else []),
        _commands(folder, kind, config, bool(lower)),
    ]
    durable.write(folder / "README.md", ("\n\n".join(parts) + "\n").encode())


def front_matter(kind: str, base: str) -> str:
    """The lines between dashes; a folder of this machine is no base model that the hub knows."""
    said = []
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        said.append(f"base_model: {base}")
    if kind in LIBRARY:
        said.append(f"library_name: {LIBRARY[kind]}")
    tags = ["fedft", "federated-learning", *(["lora"] if kind == "adapter" else [])]
    return "\n".join(["---", *said, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _precision(config: RunConfig, base: Base, run: RunFacts) -> str:
    """As ", packed by gptq in its files; its clients had it in 4 (1 of 3) and 32 (2 of 3) bits"."""
    m = config.model
    if method := stored_quantization.method_of(base.model.config):
        how = f", packed by {method} in its files"
    else:
        how = f" in {base_note.precision(m.dtype, m.bits)}"
    return how + (f"; its clients had it in {base_note.numbers(run.by_bits)} bits" if run.by_bits else "")


def _base(kind: str, base: Base) -> str:
    said = f"SHA-256 of the base's weights as they are stored: `{base.lowest or base.digest}`"
    if kind in other_tools.WHOLE:
        return f"{said}."
    other = "On other weights, or on these in another precision, the same adapter gives another loss."
    return f"{said} (`fedft doctor` shows it). {other}"


def _table(config: RunConfig, run: RunFacts) -> str:
    """What was done, a row each: what nobody has said is left out."""
    s, header, options = run.summary, run.summary.get("header", {}), config.strategy.options
    how = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    rows = {
        "strategy": f"{config.strategy.name}" + (f", {how}" if how else ", with its defaults"),
        "task": config.model.task,
        "rounds": s.get("rounds"),
        "clients": s.get("clients"),
        "rows learned": header.get("train_rows"),
        "rows held out": header.get("held_out_rows"),
        "SHA-256 of the state": s.get("state_digest"),
    }
    told = [f"| {name} | {f'{x:,}' if isinstance(x, int) else x} |" for name, x in rows.items() if x is not None]
    return "\n".join(["| of the run | |", "|---|---|", *told])


def _privacy(config: RunConfig, run: RunFacts) -> str:
    said = f"Differential privacy of those whose records it learned: {spent_privacy.sentence(run.spent)}."
    return f"{said} The counts above are outside it." if config.privacy.on and run.summary.get("header") else said


def _lowered(lower: Mapping[str, Any]) -> str:
    """What was lost by a lower rank, of each module."""
    each = (f"| `{m}` | {error:.3g} |" for m, error in lower["errors"].items())
    return "\n".join([f"It is {lower_rank.sentence(lower)}.", "", "| module | relative error |", "|---|---|", *each])


def _commands(folder: Path, kind: str, config: RunConfig, lower: bool) -> str:
    """Lines to type, in which FOLDER stands for the folder of the card and RUN for that of the run."""
    m, adapter = config.model, other_tools.adapter_config(folder)
    generates = tasks.of(m.task).generates
    load = Lines("fedft export RUN --merged --to FOLDER", (other_tools.unread("transformers", kind),))
    if kind == "adapter":
        labels, problem = (None, None) if generates else (m.labels, m.problem_type)
        call = other_tools.load_call(m.task, HERE, labels, problem)
        load = Lines(f'python -c "from peft import *; model = {call}"')
    elif kind in other_tools.WHOLE:
        call = f"Auto{tasks.of(m.task).model}.from_pretrained('{HERE}')"
        load = Lines(f'python -c "from transformers import *; model = {call}"')
    ways = {
        "Load it": load,
        "Measure it": Lines("fedft eval RUN", ("That is the model of the run, before its rank was lowered",) * lower),
        "Serve it": other_tools.vllm(kind, m.task, adapter),
        "Convert it to GGUF": other_tools.gguf(kind, m.task, adapter),
    }
    told = [f"{HERE} is the folder of this file, RUN the run's."]
    for title, (line, limits) in ways.items():
        if line or limits:
            told.append(f"{title}{':' if line else '.'}" + "".join(f" {limit}." for limit in limits))
        if line:
            told.append(f"```sh\n{line}\n```")
    return "\n\n".join(told)
