"""A base model loaded once, with the handle through which a strategy trains it: what every process of a run holds."""

import logging
from dataclasses import dataclass

import torch

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.models import adapter_folder, dtypes, lengths, targets
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
    config = dtypes.resolved(config)
    m, longest = config.model, config.data.max_length
    assert longest != "auto"
    if slow := dtypes.slow(m.dtype, m.task, m.device):
        log.warning("%s", slow)
    base = adapter_folder.load(m.id, m.task, labels=m.labels, dtype=m.dtype, device=m.device, seed=config.server.seed)
    prompt = min(longest - 1, longest if config.data.max_prompt is None else config.data.max_prompt)
    generates = m.task == "causal-lm" and (config.eval.rouge or config.eval.metrics)
    lengths.check_length(base, longest, prompt + config.eval.generate_tokens if generates else 0)
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
