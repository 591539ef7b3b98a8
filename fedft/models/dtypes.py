"""What a run file leaves to its model, resolved; the dtype of resident weights, and what it costs on a device.

"auto" is resolved once, where a run begins, and what it is resolved to is what the run's `config.toml` and its job
hold: all sites then round the same weights the same way, unless their own files say otherwise, and cut rows at the same
length (`lengths`). The dtype on a CPU is float32 whatever the file says and whatever the processor: few of them compute
bfloat16, most emulate it at several times the time, and the sites of one run must not differ by their processors.
"""

import os
from dataclasses import replace
from typing import Any

import torch

from fedft import quickstart
from fedft.config import RunConfig
from fedft.models import adapter_folder, lengths, tasks


def resolved(config: RunConfig) -> RunConfig:
    """The config with a dtype in `[model] dtype` and a number in `[data] max_length`; what is no "auto" stays.

    Modules that are trained whole make it float32, as a classifier's head does: small steps must not be lost.

    Raises DataError for the folder of an adapter that cannot be read.
    """
    m, d = config.model, config.data
    if m.dtype == "auto":
        whole = bool(m.modules_to_save)
        config = replace(config, model=replace(m, dtype="float32" if whole else chosen(m.id, m.task, m.device)))
    if d.max_length == "auto":
        config = replace(config, data=replace(d, max_length=lengths.chosen(config)))
    return config


def chosen(source: str, task: str, device: str) -> str:
    """What "auto" is: "float32", "bfloat16" or "float16".

    The file's own where `device` is a CUDA device that computes it; else float32, as for a classifier, whose head is
    trained. A file whose `config.json` names no dtype counts as float32.

    Args:
        source, task: as in `load.load`; the folder of an adapter stands for its base.
        device: torch's name of it.
    """
    if not tasks.of(task).generates or not device.startswith("cuda") or source == quickstart.BASE:
        return "float32"
    own = of_file(source)
    if own == torch.float16 or (own == torch.bfloat16 and _has_bfloat16(device)):
        return str(own).removeprefix("torch.")
    return "float32"


def of_file(source: str) -> torch.dtype | None:
    """The dtype that a model's `config.json` names, of the folder of an adapter its base's; None where none does."""
    from transformers import AutoConfig

    try:
        own: Any = AutoConfig.from_pretrained(
            os.path.expanduser(adapter_folder.chain(source)[-1]), trust_remote_code=False
        ).dtype
    except (OSError, ValueError, KeyError):  # loading the model says in one line what is wrong with it
        return None
    return own if isinstance(own, torch.dtype) else None


def slow(dtype: str, task: str, device: str) -> str:
    """One line that says why a dtype is slow on a device; "" where it is not."""
    if device.startswith("cpu") and dtype != "float32":
        return f"[model] dtype = '{dtype}' on a CPU: most emulate it and take several times as long as in float32"
    if device.startswith("cuda") and dtype == "float32" and tasks.of(task).generates and _has_bfloat16(device):
        return f"[model] dtype = 'float32' on {device}: 'bfloat16' takes half the memory and less time"
    return ""


def _has_bfloat16(device: str) -> bool:
    """Whether a CUDA device is there and computes bfloat16 itself."""
    if not torch.cuda.is_available():
        return False
    with torch.cuda.device(torch.device(device)):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
