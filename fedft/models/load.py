"""Base models and their tokenizers, loaded by transformers.

A `Base` is loaded once and stays resident in a process; every client of a simulation, or the one client of a site,
works on it through a `ModelHandle`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fedft import check
from fedft.errors import DataError
from fedft.models.parameters import digest_of

TASKS = ("causal-lm", "sequence-classification")
BUILT_IN = "stdlib-base"
"""Model id of the small base built from the language reference; see `fedft.quickstart.base`."""


@dataclass(frozen=True)
class Base:
    """A loaded base model with its tokenizer."""

    model: Any
    tokenizer: Any
    task: str
    """One of TASKS."""
    source: str
    """Folder or hub id that the model was loaded from."""
    digest: str
    """SHA-256 over the weights, hexadecimal; see `parameters.digest_of`."""

    @property
    def pad_id(self) -> int:
        """The token id that fills up short rows of a batch; 0 where the tokenizer has none. It is masked."""
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0


def load(
    source: str, task: str, *, labels: int = 0, dtype: str = "float32", device: str = "cpu", seed: int = 0
) -> Base:
    """The base model and tokenizer at `source`, in evaluation mode on `device`. Torch's global seed stays as it was.

    Args:
        source: a folder, a hub id "owner/name", or BUILT_IN, which is trained now if it is not in the cache.
        task: one of TASKS.
        labels: number of classes for classification.
        dtype: of the resident weights: float32, bfloat16 or float16.
        device: torch device.
        seed: of weights the checkpoint lacks (a new classification head), so that every site has the same ones.
    Raises:
        ValueError: another task.
        DataError: no model there, or one that does not do this task; no such device.
    """
    check.one_of(TASKS, task=task)
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if source == BUILT_IN:
        from fedft.quickstart import base as stdlib_base

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
    """The torch device called `name`; DataError where nothing can be kept on it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails where the device is not there, and on "meta", which holds nothing
    except (RuntimeError, AssertionError, ImportError) as e:
        said = str(e).strip().splitlines()
        raise DataError(f"[model] device: cannot use {name!r}: {said[0] if said else type(e).__name__}") from e
    return device


def check_length(base: Base, max_length: int) -> None:
    """Raise DataError if `max_length`, in tokens, is more than the positions that the base model has."""
    room = getattr(base.model.config, "max_position_embeddings", None)
    if isinstance(room, int) and 0 < room < max_length:
        raise DataError(f"[data] max_length = {max_length}, but {base.source} has {room} positions")


def _can_generate(config: Any) -> bool:
    """Whether a checkpoint is of a causal language model, and not of an encoder whose type could be one."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    named = " ".join(config.architectures or ())
    return config.model_type in CAUSAL and not any(w in named for w in ("BertModel", "MaskedLM", "SequenceClass"))
