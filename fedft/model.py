"""Base models: load one once, say what can be trained in it, save what was trained so that other tools read it.

The one door to transformers. `Base` is what stays resident in a process; every client of a simulation, or the one
client of a site, works on it through a `ModelHandle`.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from fedft import check
from fedft.errors import DataError
from fedft.handle import ModelHandle, parameters_of
from fedft.recipe import Layout

TASKS = ("causal-lm", "sequence-classification")
BUILT_IN = "stdlib-base"
"""Model id of the small base built from the language reference; see `fedft.stdlib_base`."""


@dataclass(frozen=True)
class Base:
    """A loaded base model with its tokenizer; `digest` is a SHA-256 over its weights."""

    model: Any
    tokenizer: Any
    task: str
    source: str
    digest: str

    @property
    def pad_id(self) -> int:
        """Token id that fills short rows; masked, so its value does not matter."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def load(
    source: str, task: str, *, labels: int = 0, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> Base:
    """The base model and tokenizer at `source`: a folder, a hub id, or `stdlib-base`.

    Args:
        source: where `from_pretrained` finds it.
        task: one of TASKS.
        labels: number of classes for classification.
        dtype: of the resident weights: float32, bfloat16 or float16.
        device: torch device.
        seed: of weights the checkpoint lacks (a new classification head), so that every site has the same ones.
    Raises:
        DataError: no model there, or one that does not do this task; no such device.
    """
    check.one_of(TASKS, task=task)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if source == BUILT_IN:
        from fedft import stdlib_base

        folder = str(stdlib_base.ensure())
    else:
        folder = os.path.expanduser(source)
        if not Path(folder).is_dir() and (source.startswith((".", "/", "~")) or source.count("/") != 1):
            raise DataError(f"[model] id: no folder {source!r}; wanted a model folder or a hub id owner/name")
    place = _device(device)
    kind = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    extra = {} if task == "causal-lm" else {"num_labels": labels}
    try:
        config = AutoConfig.from_pretrained(folder, **extra)
        if task == "causal-lm" and not _can_generate(config):
            raise DataError(
                f"[model] id: {source!r} is a {config.model_type} model, which does not generate text; "
                f"wanted a causal language model, or task = 'sequence-classification'"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: Any = kind.from_pretrained(folder, config=config, dtype=getattr(torch, dtype))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model.to(place).eval()
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError, SafetensorError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise DataError(f"[model] id: cannot load {source!r} for {task}: {first}") from e
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return Base(model, tokenizer, task, source, digest_of(model))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails where the device is not there, and on "meta", which holds nothing
    except (RuntimeError, AssertionError, ImportError) as e:
        said = str(e).strip().splitlines()
        raise DataError(f"[model] device: cannot use {name!r}: {said[0] if said else type(e).__name__}") from e
    return device


def check_length(base: Base, max_length: int) -> None:
    """Raise DataError where records may be longer than the positions that the base knows."""
    room = getattr(base.model.config, "max_position_embeddings", None)
    if isinstance(room, int) and 0 < room < max_length:
        raise DataError(f"[data] max_length = {max_length}, but {base.source} has {room} positions")


def _can_generate(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    named = " ".join(config.architectures or ())
    return config.model_type in CAUSAL and not any(w in named for w in ("BertModel", "MaskedLM", "SequenceClass"))


def digest_of(model: nn.Module) -> str:
    """SHA-256 over names, dtypes and bytes of the distinct parameters in canonical order; hexadecimal."""
    h = hashlib.sha256()
    for name, p in parameters_of(model).items():
        h.update(f"{name}\0{p.dtype}\0".encode())
        h.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()


def layout_of(base: Base, targets: str | list[str]) -> Layout:
    """What can be trained in a base.

    Args:
        base: the loaded model.
        targets: "all-linear" (every linear layer but the output and the head), or name endings such as "q_proj".
    Raises:
        DataError: a target matches no layer; the layers there are, are named.
    """
    model = base.model
    linear = {n: _out_in(m) for n, m in model.named_modules() if _is_linear(m)}
    head = _head_names(base)
    output = model.get_output_embeddings() if base.task == "causal-lm" else None
    body = {n: s for n, s in linear.items() if model.get_submodule(n) is not output and n.split(".")[0] not in head}
    if targets == "all-linear":
        modules = body
    else:
        wanted = [targets] if isinstance(targets, str) else targets
        modules = {n: s for n, s in body.items() if n.endswith(tuple(wanted)) and n.split(".")[-1] in _ends(wanted)}
        endings = sorted({n.split(".")[-1] for n in body})
        for t in wanted:
            if not any(n.endswith(t) for n in modules):
                raise DataError(f"[model] targets: no layer ends in {t!r}; this model has {', '.join(endings)}")
    parameters = {n: tuple(p.shape) for n, p in parameters_of(model).items()}
    heads = {n: s for n, s in parameters.items() if n.split(".")[0] in head}
    return Layout(_in_order(modules), _in_order(heads), _in_order(parameters))


def _ends(targets: list[str]) -> set[str]:
    return {t.split(".")[-1] for t in targets}


def _in_order(shapes: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(shapes.items(), key=lambda item: item[0].encode()))


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _out_in(module: Any) -> tuple[int, int]:
    rows, columns = module.weight.shape
    return (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)


def _head_names(base: Base) -> set[str]:
    """Top-level modules of a classifier that are not the pre-trained body."""
    if base.task == "causal-lm":
        return set()
    return {n for n, _ in base.model.named_children() if n != base.model.base_model_prefix}


def save_adapter(folder: Path, handle: ModelHandle, base: Base, base_name: str) -> str:
    """Write what `handle`'s model differs from its base by, for other tools; returns the kind of folder.

    LoRA spaces give a PEFT adapter folder (`adapter_config.json`, `adapter_model.safetensors`) that
    `peft.PeftModel.from_pretrained` and vLLM load as it is; the full space gives `delta.safetensors`, changes since w0.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs, whole = handle.change()
    if not handle.layout.modules or (not pairs and not handle.layout.head and whole):
        save_file({n: x.contiguous() for n, x in whole.items()}, folder / "delta.safetensors")
        (folder / "delta.json").write_text(json.dumps({"base": base_name, "base_digest": base.digest}) + "\n")
        return "delta"
    from peft import LoraConfig

    pairs = {m: d.shortened() for m, d in pairs.items()}
    rank = max((d.rank for d in pairs.values()), default=1)
    unlike = {m: d.rank for m, d in pairs.items() if d.rank != rank}
    heads = sorted({n.split(".")[0] for n in handle.layout.head})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # unit scale: the factors carry alpha / r
        target_modules=(targets := sorted(pairs or handle.layout.modules)),
        rank_pattern=unlike,
        alpha_pattern=dict(unlike),
        modules_to_save=heads or None,
        task_type="CAUSAL_LM" if base.task == "causal-lm" else "SEQ_CLS",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    config.target_modules = targets  # peft has made it a set, which it would write in an order of this process's own
    config.save_pretrained(str(folder))
    tensors = {f"base_model.model.{m}.{f}.weight": x for m, d in pairs.items() for f, x in _factors(d)}
    own = parameters_of(base.model)
    tensors |= {f"base_model.model.{n}": own[n].detach().cpu() for n in handle.layout.head}
    save_file({n: x.contiguous() for n, x in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})
    return "adapter"


def _factors(d: Any) -> tuple[tuple[str, torch.Tensor], ...]:
    return ("lora_A", d.A), ("lora_B", d.B)
