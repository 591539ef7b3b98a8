"""What was trained, written so that other tools read it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedft.models.handle import ModelHandle, parameters_of
from fedft.models.load import Base


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
