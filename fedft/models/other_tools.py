"""How peft, vLLM and llama.cpp take an exported folder: a line to type for each, or why there is none.

What these tools can do is theirs to change; this is as their sources have it: vLLM 0.14 (`vllm/config/lora.py`,
`vllm/lora/peft_helper.py`) and llama.cpp of autumn 2026 (`convert_lora_to_gguf.py`, `llama-adapter.h`).
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedft.data.labels import SINGLE
from fedft.models import tasks

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as --max-lora-rank."""
WHOLE = ("merged model", "merged model, cut", "merged model with zeros")
"""Kinds of folders that are whole models, as `model_folder.write` calls them."""
HERE = "FOLDER"
"""Stands for the folder in a model card, which is copied elsewhere."""


class Lines(NamedTuple):
    """What to type, and what to know first."""

    command: str
    """A line of shell; "": there is none."""
    limits: tuple[str, ...] = ()
    """Sentences without a full stop."""


def load_call(task: str, folder: str, labels: Sequence[str] | None = None, problem_type: str | None = None) -> str:
    """The expression of peft that loads the adapter in a folder, for a line of Python.

    Args:
        task: of the run file.
        folder: of the adapter.
        labels, problem_type: of a classifier; how many there are is no part of an adapter's folder that peft reads.
    """
    more = f", num_labels={len(labels)}" if labels is not None else ""
    if (problem_type or SINGLE) != SINGLE:
        more += f", problem_type='{problem_type}'"
    return f"AutoPeft{tasks.of(task).model}.from_pretrained('{folder}'{more})"


def unread(tool: str, kind: str) -> str:
    """Why a tool does nothing with a folder of "delta" or "values", and what would do."""
    matrices = ", where what it changes are weights" if kind == "values" else ""
    return f"{tool} reads no folder of kind {kind!r}: export it with --merged{matrices}"


def _why_none(tool: str, does: str, kind: str, adapter: Mapping[str, Any]) -> str:
    """Why a tool that `does` something with adapters of plain pairs does nothing with this folder; "" where it does."""
    if kind != "adapter":
        return unread(tool, kind)
    if saved := adapter.get("modules_to_save"):
        return f"{tool} {does} modules_to_save ({', '.join(saved)}): export it with --merged"
    return ""


def vllm(kind: str, task: str, adapter: Mapping[str, Any], folder: str = HERE) -> Lines:
    """The line that serves an exported folder by vLLM.

    Args:
        kind: as `model_folder.write` calls it.
        task: of the run file; vLLM is for those that generate without an encoder.
        adapter: `adapter_config.json`, of an adapter; else {}.
        folder: where it is.
    """
    if task != tasks.CAUSAL.name:
        return Lines("")
    if kind in WHOLE:
        return Lines(f"vllm serve {shlex.quote(folder)}")
    if why := _why_none("vLLM", "takes no adapter with", kind, adapter):
        return Lines("", (why,))
    rank = int(adapter["r"])
    room = next((r for r in VLLM_RANKS if r >= rank), None)
    if room is None:
        why = f"vLLM serves adapters up to rank {VLLM_RANKS[-1]}, this one has {rank}"
        return Lines("", (f"{why}: export it with --rank or --merged",))
    unused = f"vLLM keeps room for rank {room}, this one has {rank}" if room != rank else ""
    base, named = shlex.quote(adapter["base_model_name_or_path"]), shlex.quote(f"fedft={folder}")
    line = f"vllm serve {base} --enable-lora --max-lora-rank {room} --lora-modules {named}"
    return Lines(line, (unused,) if unused else ())


def gguf(kind: str, task: str, adapter: Mapping[str, Any], folder: str = HERE) -> Lines:
    """The line that converts an exported folder to GGUF by llama.cpp's own script; arguments as those of `vllm`."""
    if not tasks.of(task).generates:
        return Lines("")
    to = "--outfile fedft.gguf"
    if kind in WHOLE:
        return Lines(f"python llama.cpp/convert_hf_to_gguf.py {shlex.quote(folder)} {to}")
    if why := _why_none("llama.cpp", "converts no", kind, adapter):
        return Lines("", (why,))
    if adapter.get("rank_pattern"):
        why = (
            "llama.cpp divides one alpha by each module's own rank, and these have unlike ranks: export it with --rank"
        )
        return Lines("", (f"{why} or --merged",))
    base = adapter["base_model_name_or_path"]
    local = f" --base {shlex.quote(base)}" if Path(base).is_dir() else ""
    return Lines(f"python llama.cpp/convert_lora_to_gguf.py {shlex.quote(folder)}{local} {to}")


def lines(folder: Path, kind: str, task: str) -> dict[str, str]:
    """What to type for an exported folder where it lies, or why there is nothing to type, by the tool's name."""
    adapter = adapter_config(folder)
    found = {"vllm": vllm(kind, task, adapter, str(folder)), "gguf": gguf(kind, task, adapter, str(folder))}
    return {name: told.command or "; ".join(told.limits) for name, told in found.items() if told != Lines("")}


def adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` of a folder; {} where there is none."""
    file = folder / "adapter_config.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found
