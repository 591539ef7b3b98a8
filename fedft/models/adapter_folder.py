"""The folder of a PEFT adapter as a base model: to go on from a run, or from somebody's LoRA.

The adapter is merged into the weights of its own base, and remembered beside them: what is trained on it is exported as
one adapter of that base, of both changes, because peft does not stack adapters from several folders.

The last bits of merged weights, and so their digest, may differ between types of machines. For a deployment, merge once
(`fedft export --merged`) and give the model to every site.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedft.arithmetic.lowrank import LowRank
from fedft.errors import DataError, first_line
from fedft.models import classes
from fedft.models import load as loading
from fedft.models.classes import Classes
from fedft.models.load import Base, ready

MAX_ADAPTERS = 8
"""On top of each other, from folder to folder: two that name each other have no end."""
INNER = "base_model.model."
"""What peft puts before a module's own name."""


def load(source: str, task: str, **how: Any) -> Base:
    """The base model at `source`, as `models.load` loads it, or the base of an adapter with the adapter in it.

    Args:
        source: as there; or the folder of a PEFT adapter, whose base may be one too.
        task, how: as there.
    Raises:
        DataError: as there; and for an adapter that is no plain LoRA, or does not fit its base.
    """
    *folders, lowest = chain(source)
    base = loading.load(lowest, task, **how)
    for folder in reversed(folders):
        base = merged(base, folder)
    return base


def chain(source: str) -> list[str]:
    """`source`, what it is an adapter of, and so on down to a base that is none. Raises DataError as `base_of` does."""
    found = [source]
    while (Path(below := os.path.expanduser(found[-1])) / "adapter_config.json").is_file():
        if len(found) > MAX_ADAPTERS:
            raise DataError(f"[model] id: {source!r} is an adapter on an adapter, more than {MAX_ADAPTERS} deep")
        found.append(base_of(below))
    return found


def base_of(folder: str) -> str:
    """Folder or hub id of the base that the adapter in `folder` was trained on.

    Raises DataError where it is not a plain LoRA, whose change of a weight is a product of two factors.
    """
    from peft import PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(folder)
    except Exception as e:  # peft's parser, on whatever lies in the folder
        raise DataError(f"[model] id: cannot read the adapter in {folder!r}: {first_line(e)}") from e
    if not isinstance(config.base_model_name_or_path, str) or not config.base_model_name_or_path:
        raise DataError(f"[model] id: the adapter in {folder!r} names no base model")
    other = [n for n in ("use_dora", "target_parameters", "trainable_token_indices") if getattr(config, n, None)]
    if config.peft_type != "LORA" or getattr(config, "bias", "none") != "none" or other:
        what = ", ".join(other) or f"{config.peft_type}, bias {getattr(config, 'bias', 'none')}"
        raise DataError(f"[model] id: the adapter in {folder!r} is {what}; wanted a plain LoRA, or a merged model")
    return config.base_model_name_or_path


def merged(below: Base, source: str) -> Base:
    """The base `below` with the adapter in the folder `source` in its weights.

    Raises DataError where factors are missing or do not fit, or the adapter saves other modules than a classifier's
    head.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper
    from transformers import AutoTokenizer

    folder = os.path.expanduser(source)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # they would be random numbers
            model: Any = PeftModel.from_pretrained(below.model, folder, torch_device=str(below.model.device))
        changes = {n.removeprefix(INNER): _change(m) for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        saved = {n.removeprefix(INNER) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
        whole: Any = model.merge_and_unload()
        own = (Path(folder) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if own else below.tokenizer
    except Exception as e:  # peft's and transformers', on whatever lies in the folder
        theirs, wanted = classes.of_folder(Path(folder)), classes.of_config(below.model.config)
        if below.task != "causal-lm" and theirs and len(theirs.names) != len(wanted.names):
            classes.order(theirs, wanted, source)
        raise DataError(f"[model] id: cannot load the adapter in {source!r}: {first_line(e)}") from e
    if inside := {n for n in saved if n.split(".")[0] == getattr(whole, "base_model_prefix", "")}:
        raise DataError(
            f"[model] id: the adapter in {source!r} saves {', '.join(sorted(inside))} whole; merge it first"
        )
    if saved and below.task != "causal-lm":
        wanted = classes.of_config(whole.config)
        classes.fit(whole, classes.of_folder(Path(folder)) or _unnamed(wanted), wanted, source)
    both = {n: below.merged[n] + d if n in below.merged else d for n, d in changes.items()}
    base = ready(whole.eval().requires_grad_(True), tokenizer, below.task, source, below.drawn)
    return replace(base, merged={**below.merged, **both})


def _unnamed(wanted: Classes) -> Classes:
    """The classes of a folder that says nothing of them."""
    return replace(wanted, names=[f"LABEL_{i}" for i in range(len(wanted.names))])


def _change(layer: Any) -> LowRank:
    """B A of a LoRA layer of peft's, in unit scale, float32, on the CPU."""
    (name,) = layer.lora_A
    a, b = (factor[name].weight.detach().float().cpu() for factor in (layer.lora_A, layer.lora_B))
    return LowRank(a, layer.scaling[name] * b)
