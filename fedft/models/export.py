"""The trained part of a model, written as files that other tools read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import factored
from fedft.models import classes, peft_names, tasks
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.models.parameters import shared_names
from fedft.models.whole_modules import inside


def base_name(base: Base) -> str:
    """The name or path of a base model that `from_pretrained` takes on this machine."""
    return str(getattr(base.model.config, "_name_or_path", "") or base.source)


def pairs_of(handle: ModelHandle, base: Base) -> dict[str, LowRank]:
    """The change of each adapted module as it is exported, in unit scale: what was learned, and adapters in `base`."""
    pairs = {m: factored(d).shortened() for m, d in handle.change()[0].items()}
    both = {m: pairs[m] + d if m in pairs else d for m, d in base.merged.items()}
    return {**pairs, **both}


def save_adapter(
    folder: Path, handle: ModelHandle, base: Base, base_name: str, pairs: Mapping[str, LowRank] | None = None
) -> str:
    """Write the difference between `handle`'s model and its base into `folder`; returns the kind of folder it is.

    "adapter"   all changes are low-rank: a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) that
                `peft.PeftModel.from_pretrained` and vLLM load as it is; of a classifier also `config.json`, which
                has the names of the classes
    "delta"     all parameters were trained: `delta.safetensors`, changes since w0, and `delta.json`
    "values"    another kind of adapter: `values.safetensors`, its tensors in unit scale, and `values.json`

    A pair that repairs the weights of a packed base (`base_repair`) is a part of the adapter.

    Args:
        folder: made if it is not there; files in it are written over.
        handle: the model; not changed.
        base: the base model that `handle` is on.
        base_name: what the files call the base: a folder or hub id.
        pairs: in place of `pairs_of`, where the changes are low-rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = base.source if base.merged else base_name
    about: dict[str, Any] = {"base": name, "base_digest": base.digest, "kind": handle.kind.name}
    if not tasks.of(base.task).generates:
        own = classes.of_config(base.model.config)
        about |= {"labels": list(own.names), "problem_type": own.problem_type}
    if handle.kind.of_base:
        return _plainly(folder, "delta", handle.change()[1], about)
    if not handle.kind.pairs:
        return _plainly(folder, "values", handle.values(), about)
    _as_peft(folder, handle, base, base_name, dict(pairs_of(handle, base) if pairs is None else pairs))
    return "adapter"


def _plainly(folder: Path, kind: str, values: Tensors, about: dict[str, Any]) -> str:
    """Write the tensors and what they belong to, in files called by `kind`; returns `kind`."""
    save_file({n: x.contiguous() for n, x in values.items()}, folder / f"{kind}.safetensors")
    (folder / f"{kind}.json").write_text(json.dumps(about) + "\n")
    return kind


def _as_peft(folder: Path, handle: ModelHandle, base: Base, base_name: str, pairs: dict[str, LowRank]) -> None:
    """Write the changes by module, and what is trained whole, as a PEFT folder of scale 1."""
    from peft import LoraConfig

    stacks = peft_names.stacks_of(base.model, handle.layout.experts | pairs.keys())
    experts = {m for of in stacks.values() for m in of}
    fused = peft_names.stacked(pairs, stacks)
    ranks = {p: d.rank // next(iter(stacks[p].values())).count for p, d in fused.items()}
    pairs = {m: d for m, d in pairs.items() if m not in experts}
    ranks |= {m: d.rank for m, d in pairs.items()}
    rank = max(ranks.values(), default=1)
    unlike = {m: r for m, r in ranks.items() if r != rank}
    whole = handle.layout.whole | base.saved
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # unit scale: the factors carry alpha / r
        target_modules=(targets := sorted(pairs if ranks else handle.layout.modules.keys() - experts)),
        target_parameters=sorted(fused if ranks else stacks) or None,
        rank_pattern=unlike,
        alpha_pattern=dict(unlike),
        modules_to_save=sorted(whole) or None,
        task_type=tasks.of(base.task).peft,
        base_model_name_or_path=base_name,
        inference_mode=True,
        # peft ties an output to an embedding; of the embeddings of an encoder-decoder it would make linear layers
        ensure_weight_tying=any(len(of) == 2 and inside(of[0], whole) for of in shared_names(base.model)),
    )
    config.target_modules = targets  # peft has made it a set, which it would write in an order of this process's own
    config.save_pretrained(str(folder))
    if not tasks.of(base.task).generates:
        base.model.config.save_pretrained(str(folder))
    wrapped = {p: stacks[p] for p in fused}
    pairs |= {peft_names.wrapper(base.model, p, wrapped): d for p, d in fused.items()}
    tensors = {f"{peft_names.INNER}{m}.{f}.weight": x for m, d in pairs.items() for f, x in _factors(d)}
    own = base.model.named_parameters(remove_duplicate=False)  # a tied one under each of its names, as peft reads it
    tensors |= {f"{peft_names.INNER}{n}": p.detach().cpu().clone() for n, p in own if inside(n, whole)}
    save_file({n: x.contiguous() for n, x in tensors.items()}, folder / "adapter_model.safetensors", {"format": "pt"})


def _factors(d: LowRank) -> tuple[tuple[str, torch.Tensor], ...]:
    """The factors by peft's names."""
    return ("lora_A", d.A), ("lora_B", d.B)
