"""Base models and their tokenizers, loaded by transformers.

A `Base` is loaded once and stays resident in a process; every client of a simulation, or the one client of a site,
works on it through a `ModelHandle`.
"""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedft import check, quickstart
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.data.labels import SINGLE
from fedft.errors import DataError, FedftError, first_line, in_one_line, offline
from fedft.models import classes, stored_quantization, stored_weights, tasks, tokenizer_digest
from fedft.models.classes import Classes
from fedft.models.parameters import parameters_of

POINTER = b"version https://git-lfs"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class Base:
    """A loaded base model with its tokenizer."""

    model: Any
    tokenizer: Any
    task: str
    """The name of one of `tasks.TASKS`."""
    source: str
    """Folder or hub id that the model was loaded from."""
    digest: str
    """SHA-256 of the weights as they are stored, hexadecimal, whatever they are loaded as; see `stored_weights`."""
    merged: Mapping[str, LowRank] = field(default_factory=dict)
    """The changes by adapters that are merged into the weights, by module, in unit scale."""
    lowest: str = ""
    """The digest of the base below such adapters; "" where there are none."""
    earlier: Callable[[str], str] = lambda dtype: ""
    """The digest of the weights as they are loaded in a dtype, which runs of before have; loads the base once more."""
    saved: frozenset[str] = frozenset()
    """Modules that such an adapter has brought whole, by path: they are exported with what is trained."""
    drawn: frozenset[str] = frozenset()
    """Parameters that the checkpoint lacks, by name: a head's, which are drawn from the seed, trained and saved."""
    pad_id: int = 0
    """The token id that fills up short rows of a batch: one that the model has. It is masked."""
    ids: int = 2**31
    """How many token ids the model has an embedding for, from 0."""
    bits: int | None = None
    """Of each weight of its linear layers, where they are packed (`quantized_base`): 4 or 8."""
    stored: Mapping[str, Tensors] = field(default_factory=dict, repr=False)
    """The file that holds a tensor of the checkpoint, by the tensor's name."""
    repair_rank: int = 0
    """Of the pairs in `merged` that repair packed weights (`base_repair`); 0: there are none."""

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer, hexadecimal; see `tokenizer_digest.digest_of`."""
        return tokenizer_digest.digest_of(self.tokenizer)


def load(
    source: str, task: str, *, labels: Sequence[str] = (), problem_type: str = SINGLE, dtype: str = "float32",
    device: str = "cpu", seed: int = 0, attention: str | None = None, only_floats: str = "",
) -> Base:  # fmt: skip
    """The base model and tokenizer at `source`, in evaluation mode on `device`. Torch's global seed stays as it was.

    Args:
        source: a folder, a hub id "owner/name", or `quickstart.BASE`, which is trained now if it is not in the cache.
        task: the name of one of `tasks.TASKS`.
        labels: names of the classes for classification, in order; none: those that the folder says. A head in the
            folder that has them in another order is reordered.
        problem_type: what the labels are, in transformers' words; see `fedft.data.labels`.
        dtype: of the resident weights: float32, bfloat16 or float16.
        device: torch device.
        seed: of weights the checkpoint lacks (a new classification head), so that every site has the same ones.
        attention: `[model] attention`.
        only_floats: why a checkpoint of packed weights is refused; "": it is not.
    Raises:
        ValueError: another task.
        DataError: no model there, or one that does not do this task; weights that it lacks; a head of other classes;
            no such device. No code of a model's folder is ever run.
    """
    wanted = tasks.of(task)
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    folder = folder_of(source)
    place = device_of(device)
    kind: Any = getattr(transformers, f"Auto{wanted.model}")
    try:
        config = tasks.config_in(folder, source, wanted)
        packed = stored_quantization.check_readable(config, source, only_floats)
        tokenizer = tokenizer_of(folder)  # before gigabytes of weights are read
        own, named = classes.of_config(config), Classes(labels, problem_type)
        if labels and not wanted.generates:
            classes.name(config, own, named, source)
        files = stored_weights.stamps_of(stored_weights.files_of(folder))
        how: dict[str, Any] = {"dtype": getattr(torch, dtype), "attn_implementation": attention}
        how |= {"device_map": {"": place}} if packed else {}  # their library places them where it unpacks them
        model, lacks = _weights(kind, folder, seed, config=config, **how)
        (model if packed else model.to(place)).eval()
    except FedftError:
        raise
    except Exception as e:  # of four libraries' parsers, on whatever lies in the folder
        raise DataError(_why_not(source, folder, task, e)) from e
    drawn = lacks & parameters_of(model).keys()
    if drawn and wanted.generates:
        raise lacking(source, config.model_type, drawn)
    if labels and not wanted.generates:
        classes.fit(model, own, named, source, drawn)
    digest = stored_weights.of_model(folder, files, model, drawn)
    base = replace(ready(model, tokenizer, task, source, drawn, digest), stored=stored_weights.in_files(files))
    if wanted.two_sides:
        _check_decoder(base)
    return base


def _weights(kind: Any, folder: str, seed: int, **how: Any) -> tuple[Any, frozenset[str]]:
    """(the model of a folder or a hub id, names of what its checkpoint lacks, which was drawn from the seed)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, told = kind.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **how)
    return model, frozenset(told["missing_keys"])


def folder_of(source: str) -> str:
    """What transformers loads for a model id: a folder, or a hub id as it is. DataError for neither."""
    if source == quickstart.BASE:
        from fedft.quickstart import base as stdlib_base

        return str(stdlib_base.ensure())
    folder = os.path.expanduser(source)
    if Path(folder).is_file():
        raise DataError(
            f"[model] id: {source!r} is a file; wanted the folder of a model as transformers saves it, with "
            f"config.json, *.safetensors and a tokenizer"
        )
    if not source or (not Path(folder).is_dir() and not HUB_ID.fullmatch(source)):
        raise DataError(f"[model] id: no folder {source!r}; wanted a model folder or a hub id owner/name")
    if (Path(folder) / "adapter_config.json").is_file():
        raise DataError(f"[model] id: {source!r} is the folder of an adapter, not of a model")
    return folder


def tokenizer_of(folder: str) -> Any:
    """The tokenizer of a model. Raises DataError with the whole of the reason, which says what is missing."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:  # of two libraries' parsers, on whatever lies in the folder
        raise DataError(f"[model] id: cannot load the tokenizer of {folder!r}: {in_one_line(e)}") from e


def _why_not(source: str, folder: str, task: str, e: Exception) -> str:
    """The line that says why a model could not be loaded, and what to do where that is known."""
    if not Path(folder).is_dir():
        why = f"no such folder, and not to be had from the hub{offline()}: {first_line(e).rstrip('. ')}"
        return f"[model] id: cannot load {source!r}: {why}"
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as opened:
            if opened.read(len(POINTER)) == POINTER:
                return f"[model] id: {file} is a pointer of Git LFS, not the weights; `git lfs pull` fetches them"
    own_code = "; fedft runs no code of a model's folder" if "custom code" in str(e) else ""
    return f"[model] id: cannot load {source!r} for {task}: {first_line(e).rstrip('. ')}{own_code}"


def ready(model: Any, tokenizer: Any, task: str, source: str, drawn: frozenset[str], digest: str) -> Base:
    """The base of this digest, with a padding token that both the tokenizer and the model know."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    given, ids, pad = model.config.pad_token_id, ids_of(model), pad_id(model, tokenizer)
    if given is None or not 0 <= given < ids:
        model.config.pad_token_id = pad
    return Base(model, tokenizer, task, source, digest, drawn=drawn, pad_id=pad, ids=ids)


def lacking(source: str, kind: str, names: Collection[str]) -> DataError:
    """The error that a checkpoint of a model of this kind has no weights of these names."""
    return DataError(
        f"[model] id: {source!r} lacks {len(names)} of the {kind} model's weights, {check.few(sorted(names))}; "
        f"they would be random numbers"
    )


def _check_decoder(base: Base) -> None:
    """Raise DataError unless the model makes its decoder's inputs of labels, the first with an id that it has."""
    make, start = getattr(base.model, "prepare_decoder_input_ids_from_labels", None), base.model.config
    try:
        inputs = make(labels=torch.tensor([[0, 1]])) if make else torch.tensor([start.decoder_start_token_id])
        fine = all(0 <= i < base.ids for i in inputs.flatten().tolist())
    except Exception:  # transformers', each model's own way to say that there is none
        fine = False
    if not fine:
        found = getattr(start, "decoder_start_token_id", None)
        raise DataError(
            f"[model] id: {base.source!r} has decoder_start_token_id = {found!r}; wanted, in its config.json, the id "
            f"below {base.ids} of the token that its decoder begins with"
        )
    labels = torch.tensor([[0, 1]], device=base.model.device)
    try:
        with torch.no_grad():
            told = base.model(input_ids=labels[:, [0, 0, 0]], labels=labels).logits.shape[1] == labels.shape[1]
    except Exception:  # transformers', of a decoder that was given something else
        told = False
    if not told:  # FSMT: it is given what the encoder reads
        raise DataError(f"[model] id: {base.source!r} is a {start.model_type} model, which gives its decoder no labels")


def ids_of(model: Any) -> int:
    """How many token ids a model has an embedding for, from 0; of an encoder-decoder no more than it can write."""
    tables = [model.get_input_embeddings()]
    if tasks.two_sided(model):
        tables.append(model.get_output_embeddings())
    return min(int(t.weight.shape[0]) for t in tables)


def pad_id(model: nn.Module, tokenizer: Any) -> int:
    """The tokenizer's padding token, its end token where the model has no embedding for that one, or else 0.

    Padding is masked: the value counts for nothing, but it is looked up.
    """
    wanted = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((i for i in wanted if i is not None and 0 <= i < ids_of(model)), 0)


def device_of(name: str) -> torch.device:
    """The torch device called `name`; DataError where nothing can be kept on it."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # fails where the device is not there, and on "meta", which holds nothing
    except (RuntimeError, AssertionError, ImportError) as e:
        here = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        why = first_line(e).split(". ")[0]
        raise DataError(f"[model] device: cannot use {name!r}: {why}; there are {check.few(here)} here") from e
    return device
