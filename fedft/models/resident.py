"""A base model loaded once, with the handle through which a strategy trains it: what every process of a run holds."""

import logging
from dataclasses import dataclass, replace
from typing import Any

import torch

from fedft import reading_libraries
from fedft.config import Model, RunConfig
from fedft.contract import Layout
from fedft.errors import ConfigError
from fedft.models import (
    base_note,
    checkpointing,
    compiled_layers,
    device_arithmetic,
    dtypes,
    lengths,
    loaded_base,
    noisy_embeddings,
    packed_rows,
    targets,
)
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.models.load import Base
from fedft.recipe import Recipe
from fedft.training import objectives
from fedft.training.first_order import gradient_steps

log = logging.getLogger(__name__)

CHOICES = ("targets", "layers", "modules_to_save")
"""Keys of `[model]` that say what of a model is trained."""


@dataclass(frozen=True)
class Resident:
    """A loaded base model, the layout of its trainable parts, and the handle on it."""

    base: Base
    layout: Layout
    handle: ModelHandle


def load(config: RunConfig, recipe: Recipe, *, trains: bool = True) -> Resident:
    """The base model that `[model]` names, loaded, with a handle for the recipe's kind of adapter on it.

    Sets torch's number of threads to `[local] threads`, and warns of a dtype that is slow on the device. It lies on the
    CPU, whatever `[model] device` is, if nobody `trains` on it here, but in workers of their own.

    Raises DataError for a model that cannot be loaded, is too short for `[data] max_length`, or does not keep packed
    rows apart where `[local] packing` wants it; ConfigError for an objective that does not exist, experts of the
    model that the kind of adapter or dropout cannot have, or a model that `[local] checkpointing` or `compile`
    cannot work on.
    """
    with reading_libraries():  # transformers and peft read those of a model as it is loaded
        return _load(config, recipe, trains)


def _load(config: RunConfig, recipe: Recipe, trains: bool) -> Resident:
    torch.set_num_threads(config.local.threads)
    config = dtypes.resolved(config)
    device_arithmetic.prepare(config.model.device, config.local)
    if config.local.compile and gradient_steps(recipe.local) is None:
        why = f"local steps of {recipe.name} do more to a model than to train it"
        raise ConfigError(f"[local] compile: {why}; leave it out")
    m = config.model
    if not m.modules_to_save and (slow := dtypes.slow(m.dtype, m.task, m.device)):
        log.warning("%s", slow)
    head: dict[str, Any] = {"labels": m.labels, "problem_type": m.problem_type}
    how: dict[str, Any] = {"seed": config.server.seed, "attention": m.attention}
    here = m if trains else replace(m, device="cpu")
    base = loaded_base.load(here, only_floats=_only_floats(m, recipe), **head, **how)
    base_note.say(m, base)
    lengths.check_lengths(base, config)
    if recipe.space.of_base:
        for key, value in _idle(m).items():
            log.warning("[model] %s = %r has no effect: %s trains all parameters", key, value, recipe.name)
        layout = layout_of(base, [])
    else:
        layout = layout_of(base, m.targets, layers=m.layers, modules_to_save=m.modules_to_save)
    _check_experts(layout, recipe, m.lora_dropout)
    log.debug("adapters: %s", targets.coverage(base, layout))
    handle = ModelHandle(
        base.model,
        layout,
        recipe.space,
        lora_alpha=m.lora_alpha,
        dropout=m.lora_dropout,
        objective=objectives.of(config),
        autocast=config.local.autocast,
        stored=base.stored,
    )
    if config.local.neftune_alpha:
        noisy_embeddings.switch_on(base.model, config.local.neftune_alpha)
    if config.local.checkpointing:
        checkpointing.switch_on(base.model, base.source)
    if config.local.packing:
        packed_rows.check_exact(handle, base, config.data.length)
    if config.local.compile:
        compiled_layers.switch_on(base.model, base.source, len({*config.ranks()}))
    return Resident(base, handle.layout, handle)


def _only_floats(m: Model, recipe: Recipe) -> str:
    """Why a run cannot have a base whose files hold packed weights; "" where it can."""
    if recipe.space.of_base:
        return f"{recipe.name} writes all weights of the base; wanted a model in floats, or a strategy with adapters"
    return f"[model] base_bits = {m.base_bits} packs floats; leave it out" if m.base_bits is not None else ""


def _idle(m: Model) -> dict[str, object]:
    """What a `[model]` table says of layers, by key, where that is not the default."""
    return {key: value for key in CHOICES if (value := getattr(m, key)) != getattr(Model(), key)}


def _check_experts(layout: Layout, recipe: Recipe, dropout: float) -> None:
    """Raise ConfigError where experts that lie in one parameter cannot be adapted in the way that the run file says."""
    if not layout.experts:
        return
    some = f"[model] targets: {min(layout.experts)} and {len(layout.experts) - 1} more are experts in parameters that"
    if not recipe.space.experts:
        raise ConfigError(f"{some} adapters of kind {recipe.space.name!r} cannot take apart; name other layers")
    if dropout:  # what would be dropped are the inputs of a product that is not made: B A is added to the weight
        raise ConfigError(f"{some} take no lora_dropout ({dropout:g}); leave it out, or name other layers")
