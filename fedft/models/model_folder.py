"""A trained model as a folder for other tools: with its tokenizer, as an adapter or merged with its base."""

import logging
import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fedft.arithmetic.lowrank import LowRank
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.models import (
    adapter_folder,
    base_note,
    export,
    lower_rank,
    model_card,
    quantized_base,
    sliced_folder,
    stored_quantization,
)
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.models.model_card import UNKNOWN, RunFacts
from fedft.models.parameters import parameters_of, shared_names
from fedft.pruning.kept import Kept
from fedft.pruning.masks import kept_in

log = logging.getLogger(__name__)


def check_free(to: Path) -> None:
    """Return None if `to` is not there yet, or an empty folder. Raises ConfigError."""
    try:
        if to.exists() and any(to.iterdir()):
            raise ConfigError(f"--to {to}: is not empty")
    except OSError as e:
        raise ConfigError(f"--to {to}: cannot be written: {e.strerror}") from e


def write(
    to: Path, config: RunConfig, base: Base, handle: ModelHandle, *, merged: bool = False, rank: int | None = None,
    run: RunFacts = UNKNOWN,
) -> str:  # fmt: skip
    """Write the model as it stands into the folder `to`, made if missing; returns what it is.

    "adapter", "delta" or "values" as `export.save_adapter` says; with `merged` "merged model", the whole of it, or a
    pruned one as `sliced_folder.save` says: what masks in the model switch off is pruned.

    Args:
        to: folder.
        config: of the run, as resolved.
        base: that `handle` is on.
        handle: the model.
        merged: whether the change is added to the base's weights.
        rank: of the adapter, which is then the best of this rank, see `lower_rank`; None: as it is.
        run: what else is known of the run, for the model card.
    Raises:
        ConfigError: the folder cannot be written; a change that is no matrix cannot be merged, nor any into weights
            that are packed; a rank for what has none, or is pruned, or a rank above the adapter's.
    """
    if merged and (method := stored_quantization.method_of(base.model.config)):
        raise ConfigError(f"--merged: {base.source!r} holds its weights packed by {method}; export the adapter alone")
    kept = kept_in(handle.model)
    pruned = kept if kept is not None and kept.ratio else None
    pairs, lower = (None, None) if rank is None else _lowered(handle, base, rank, merged, pruned)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--to {to}: cannot be written: {e.strerror}") from e
    if merged:
        export.save_adapter(to, handle, base, export.base_name(base))
        kind = _merge(to, config, base, handle, pruned)
        model_card.write(to, kind, config, base, run)
        return kind
    kind = write_adapter(to, config, base, handle, run, pairs, lower)
    if pruned is not None:
        sliced_folder.write_slices(to, pruned)
        sliced_folder.add_to_card(to, pruned)
        log.warning(
            "%.0f %% of the weights in heads and channels are pruned: fedft.load_sliced(%r) gives this model, the "
            "adapter on its whole base another one", 100 * pruned.ratio, str(to),
        )  # fmt: skip
    if base.bits is not None:
        log.warning(
            "it was trained on a base of %d bits, and gives another loss on any other: see base.json", base.bits
        )
    return kind


def write_adapter(
    to: Path, config: RunConfig, base: Base, handle: ModelHandle, run: RunFacts,
    pairs: Mapping[str, LowRank] | None = None, lower: Mapping[str, Any] | None = None,
) -> str:  # fmt: skip
    """Write what was trained with its tokenizer, `base.json` and model card; returns the kind of folder it is.

    `pairs` and `lower` are what `lower_rank.lowered` gives, where the rank is lowered. The other arguments are those of
    `write`.
    """
    kind = export.save_adapter(to, handle, base, export.base_name(base), pairs)
    _save_tokenizer(to, config, base.tokenizer)
    base_note.write(to, base, config.model, run.by_bits, run.spent, lower)
    model_card.write(to, kind, config, base, run, lower)
    return kind


def _lowered(
    handle: ModelHandle, base: Base, rank: int, merged: bool, pruned: Kept | None
) -> tuple[dict[str, LowRank], dict[str, Any]]:
    """The adapter's pairs at a lower rank, and what is lost. Raises ConfigError where there is no such thing."""
    if merged:
        raise ConfigError(f"--rank {rank}: a merged model has no rank; leave --rank out, or --merged")
    if handle.kind.of_base or not handle.kind.pairs:
        raise ConfigError(f"--rank {rank}: what adapters of kind {handle.kind.name!r} train is no pair of factors")
    if pruned is not None:
        why = "the best approximation of the whole matrices is not that of the rows and columns that are left"
        raise ConfigError(f"--rank {rank}: this client's model is pruned, and {why}; leave --rank out")
    return lower_rank.lowered(export.pairs_of(handle, base), rank)


def _merge(to: Path, config: RunConfig, base: Base, handle: ModelHandle, pruned: Kept | None) -> str:
    """Write the whole model in place of the adapter that is in `to`; returns what it is."""
    m, seed = config.model, config.server.seed
    adapter = (to / "adapter_config.json").exists()
    # an adapter on an adapter has been exported as one, of the base below both
    source = export.base_name(base) if adapter and base.merged else m.id
    how = {"labels": m.labels, "problem_type": m.problem_type, "dtype": m.dtype, "seed": seed}
    round_off = None
    if m.base_bits is not None:
        log.warning(
            "--merged: the weights are those that the base of %d bits stands for, with the change in them, as the run "
            "had them: on the weights of %s as they are stored the change gives another model", m.base_bits, source,
        )  # fmt: skip
        rank = 0 if adapter else m.repair_rank or 0  # an adapter holds the repair
        round_off = partial(
            quantized_base.rounded, bits=m.base_bits, modules_to_save=m.modules_to_save, repair_rank=rank
        )
    fresh = adapter_folder.load(source, m.task, prepare=round_off, **how)  # rounded as it was in the run
    if not handle.weights_fixed:
        fresh.model.float()  # what is added to it was in float32, too
    if adapter:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft asks transformers for a name that is being renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")  # of a Conv1D: peft corrects it
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying")  # those of an encoder-decoder: export.py
            shared = shared_names(fresh.model)
            whole = adapter_folder.in_its_weights(PeftModel.from_pretrained(fresh.model, str(to)), shared)
    else:
        whole = fresh.model
        own = parameters_of(whole)
        for name, change in _whole_changes(handle, whole, to).items():
            own[name].data.add_(change)
    for file in to.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    _save_tokenizer(to, config, fresh.tokenizer)
    if pruned is not None:
        return sliced_folder.save(to, whole, pruned)
    whole.save_pretrained(str(to))
    return "merged model"


def _save_tokenizer(to: Path, config: RunConfig, tokenizer: Any) -> None:
    """Write the tokenizer, with the chat template that the run learned: what is served is written as it was.

    A base that was made up, as benches do, has none.
    """
    if tokenizer is None:
        return
    if config.data.chat_template is not None:
        tokenizer.chat_template = config.data.chat_template
    tokenizer.save_pretrained(str(to))


def _whole_changes(handle: ModelHandle, fresh: nn.Module, to: Path) -> dict[str, Tensor]:
    """What each parameter of the base, `fresh`, differs by. Raises ConfigError for a kind whose change is no matrix."""
    from safetensors.torch import load_file

    if (to / "delta.safetensors").exists():
        return load_file(to / "delta.safetensors")
    changes, whole = handle.change()
    if not changes and handle.layout.modules:
        raise ConfigError(f"--merged: what adapters of kind {handle.kind.name!r} change is no matrix of a weight")
    for m, d in changes.items():
        dense = d.dense() if isinstance(d, LowRank) else d
        whole[f"{m}.weight"] = dense.T if type(fresh.get_submodule(m)).__name__ == "Conv1D" else dense
    return whole
