"""The folder of a PEFT adapter as a base model: to go on from a run, or from somebody's LoRA.

The adapter is merged into the weights of its own base, and remembered beside them: what is trained on it is exported as
one adapter of that base, of both changes, because peft does not stack adapters from several folders. Beside weights in
4 or 8 bits it stands as factors: they are those that it was trained on, or nearly.

The digest is of the base's and of what the adapters bring, at whatever precision the base is. The last bits of merged
weights may differ between types of machines, which it does not show: for methods whose clients must hold the same bits,
merge once (`fedft export --merged`) and give the model to every site.
"""

import os
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedft.config import DTYPES
from fedft.errors import DataError, first_line
from fedft.models import classes, stored_quantization, stored_weights, tasks
from fedft.models import load as loading
from fedft.models.classes import Classes
from fedft.models.load import Base, ready
from fedft.models.parameters import digest_of, shared_names
from fedft.models.peft_names import INNER, changes_of
from fedft.models.whole_modules import inside

SLICES = "fedft_slices.safetensors"
"""Beside a pruned model's files: what of it is kept, see `sliced_folder`."""
MAX_ADAPTERS = 8
"""On top of each other, from folder to folder: two that name each other have no end."""


def load(source: str, task: str, *, prepare: Callable[[Base], Base] | None = None, **how: Any) -> Base:
    """The base model at `source`, as `models.load` loads it, or the base of an adapter with the adapter in it.

    Args:
        source: as there; or the folder of a PEFT adapter, whose base may be one too.
        task, how: as there.
        prepare: what is done to the lowest base, before any adapter comes to it: see `quantized_base`.
    Raises:
        DataError: as there; and for an adapter that is no plain LoRA, or does not fit its base.
    """
    *folders, lowest = chain(source)
    try:
        base = loading.load(lowest, task, **how)
    except DataError as e:
        raise DataError(f"{e}; {folders[-1]!r} is an adapter of it") if folders else e from e
    if prepare is not None:
        base = prepare(base)
    for folder in reversed(folders):
        base = merged(base, folder)

    @cache
    def earlier(dtype: str) -> str:
        if dtype not in DTYPES[1:]:  # a message may say anything
            return ""
        return digest_of(load(source, task, **{**how, "dtype": dtype, "device": "cpu"}).model)

    return replace(base, earlier=earlier)


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
    other = [n for n in ("use_dora", "trainable_token_indices") if getattr(config, n, None)]
    if config.peft_type != "LORA" or getattr(config, "bias", "none") != "none" or other:
        what = ", ".join(other) or f"{config.peft_type}, bias {getattr(config, 'bias', 'none')}"
        raise DataError(f"[model] id: the adapter in {folder!r} is {what}; wanted a plain LoRA, or a merged model")
    return config.base_model_name_or_path


def merged(below: Base, source: str) -> Base:
    """The base `below` with the adapter in the folder `source` in its weights.

    Raises DataError where factors are missing or do not fit, or the adapter saves modules whole that hold layers of the
    body, or share their weights with others.
    """
    if method := stored_quantization.method_of(below.model.config):
        why = f"its base holds weights packed by {method}, into which nothing can be merged; give a base in floats"
        raise DataError(f"[model] id: cannot load the adapter in {source!r}: {why}")
    from peft import PeftModel
    from peft.utils import ModulesToSaveWrapper, load_peft_weights
    from transformers import AutoTokenizer

    folder, shared = os.path.expanduser(source), shared_names(below.model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*missing adapter keys.*")  # they would be random numbers
            # peft asks transformers for a name that is being renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # of a Conv1D: peft corrects it
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying")  # `in_its_weights` ties what was tied
            model: Any = PeftModel.from_pretrained(below.model, folder, torch_device=str(below.model.device))
        changes = changes_of(model)
        brings = {n: x for n, x in load_peft_weights(folder, device="cpu").items() if ".lora_" not in n}
        brings |= {f"{m}.{n}": x for m, d in changes.items() for n, x in (("lora_A", d.A), ("lora_B", d.B))}
        saved = {n.removeprefix(INNER) for n, m in model.named_modules() if isinstance(m, ModulesToSaveWrapper)}
        whole = in_its_weights(model, shared)
        own = (Path(folder) / "tokenizer_config.json").is_file()
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if own else below.tokenizer
    except Exception as e:  # peft's and transformers', on whatever lies in the folder
        theirs, wanted = classes.of_folder(Path(folder)), classes.of_config(below.model.config)
        if not tasks.of(below.task).generates and theirs and len(theirs.names) != len(wanted.names):
            classes.order(theirs, wanted, source)
        raise DataError(f"[model] id: cannot load the adapter in {source!r}: {first_line(e)}") from e
    if bad := _not_apart(replace(below, model=whole), shared, saved, changes):
        why = "hold layers or share weights with others; give a merged model"
        raise DataError(f"[model] id: the adapter in {source!r} changes {', '.join(sorted(bad))}, which {why}")
    if saved and not tasks.of(below.task).generates:
        wanted = classes.of_config(whole.config)
        classes.fit(whole, classes.of_folder(Path(folder)) or _unnamed(wanted), wanted, source)
    both = {n: below.merged[n] + d if n in below.merged else d for n, d in changes.items()}
    digest = stored_weights.on_top(below.digest, brings)
    base = ready(whole.eval().requires_grad_(True), tokenizer, below.task, source, below.drawn, digest)
    lowest = below.lowest or below.digest
    return replace(base, merged={**below.merged, **both}, lowest=lowest, saved=below.saved | saved)


def _not_apart(below: Base, shared: list[list[str]], saved: Collection[str], changed: Collection[str]) -> set[str]:
    """Those of the modules that an adapter saves or changes which cannot stand beside what is trained later: adapters
    may be put on layers in them; or, by `shared`, another module has the same weights and would be moved, too.
    """
    model, output = below.model, below.model.get_output_embeddings() if tasks.of(below.task).generates else None
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
    body = f"{model.base_model_prefix}."
    bad = {n for n in saved if n.startswith(body) and any(inside(m, {n}) for m in linear)}
    bad |= {n for of in shared for n in of if inside(n, saved) and not all(inside(o, saved) for o in of)}
    bad |= {n for of in shared for n in of if model.get_parameter(n) is not model.get_parameter(of[0])}
    return bad | {n for of in shared for n in of if n.removesuffix(".weight") in changed}


def in_its_weights(model: Any, shared: Sequence[Sequence[str]]) -> Any:
    """The base model of a peft model, with the adapter in its weights.

    Whether embeddings are tied stays as it was: peft looks at those of an encoder, finds that they are not the output's
    and says so in the config, by which a saved model would then load with a random output. And parameters that were one
    in the base, by their names in `shared`, are one again where they are equal: peft has a copy for each module.
    """
    tied = getattr(model.config, "tie_word_embeddings", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied")
        whole = model.merge_and_unload()
    if tied is not None:
        whole.config.tie_word_embeddings = tied
    for first, *others in shared:
        one = whole.get_parameter(first)
        for module, _, name in (n.rpartition(".") for n in others):
            if torch.equal(one, getattr(whole.get_submodule(module), name)):
                setattr(whole.get_submodule(module), name, one)
    return whole


def _unnamed(wanted: Classes) -> Classes:
    """The classes of a folder that says nothing of them."""
    return replace(wanted, names=[f"LABEL_{i}" for i in range(len(wanted.names))])
