"""A base model loaded once, with the handle through which a strategy trains it: what every process of a run holds."""

import logging
from dataclasses import dataclass

import torch

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.models import adapter_folder, dtypes, targets, tasks
from fedft.models import load as loading
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.models.load import Base
from fedft.recipe import Recipe
from fedft.training import objectives

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resident:
    """A loaded base model, the layout of its trainable parts, and the handle on it."""

    base: Base
    layout: Layout
    handle: ModelHandle


def load(config: RunConfig, recipe: Recipe) -> Resident:
    """The base model that `[model]` names, loaded, with a handle for the recipe's kind of adapter on it.

    Sets torch's number of threads to `[local] threads`, and warns of a dtype that is slow on the device.

    Raises DataError for a model that cannot be loaded or is too short for `[data] max_length`, ConfigError for an
    objective that does not exist.
    """
    torch.set_num_threads(config.local.threads)
    m = dtypes.resolved(config).model
    if slow := dtypes.slow(m.dtype, m.task, m.device):
        log.warning("%s", slow)
    head = {"labels": m.labels, "problem_type": m.problem_type}
    base = adapter_folder.load(m.id, m.task, **head, dtype=m.dtype, device=m.device, seed=config.server.seed)
    _check_lengths(base, config)
    if recipe.space.of_base and m.targets != "all-linear":
        log.warning("[model] targets = %r has no effect: %s trains all parameters", m.targets, recipe.name)
    layout = layout_of(base, [] if recipe.space.of_base else m.targets)
    log.debug("adapters: %s", targets.coverage(base, layout))
    handle = ModelHandle(
        base.model,
        layout,
        recipe.space,
        lora_alpha=m.lora_alpha,
        dropout=m.lora_dropout,
        objective=objectives.of(config),
    )
    return Resident(base, handle.layout, handle)


def _check_lengths(base: Base, config: RunConfig) -> None:
    """Raise DataError where a text of `[data]`, or one that is generated, is longer than the model's positions."""
    d, task = config.data, tasks.of(config.model.task)
    generated = config.eval.generate_tokens if task.generates and (config.eval.rouge or config.eval.metrics) else 0
    if task.two_sides:
        loading.check_sides(base, d.max_length if d.max_prompt is None else d.max_prompt, d.max_length, generated)
        return
    prompt = min(d.max_length - 1, d.max_length if d.max_prompt is None else d.max_prompt)
    loading.check_length(base, d.max_length, prompt + generated if generated else 0)
