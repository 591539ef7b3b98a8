"""A base model loaded once, with the handle through which a strategy trains it: what every process of a run holds."""

from dataclasses import dataclass

import torch

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.models import adapter_folder
from fedft.models import load as loading
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.models.load import Base
from fedft.recipe import Recipe
from fedft.training import objectives


@dataclass(frozen=True)
class Resident:
    """A loaded base model, the layout of its trainable parts, and the handle on it."""

    base: Base
    layout: Layout
    handle: ModelHandle


def load(config: RunConfig, recipe: Recipe) -> Resident:
    """The base model that `[model]` names, loaded, with a handle for the recipe's kind of adapter on it.

    Sets torch's number of threads to `[local] threads`. Raises DataError for a model that cannot be loaded or is too
    short for `[data] max_length`, ConfigError for an objective that does not exist.
    """
    torch.set_num_threads(config.local.threads)
    m = config.model
    base = adapter_folder.load(
        m.id, m.task, labels=len(m.labels), dtype=m.dtype, device=m.device, seed=config.server.seed
    )
    longest = config.data.max_length
    prompt = min(longest - 1, longest if config.data.max_prompt is None else config.data.max_prompt)
    generates = m.task == "causal-lm" and (config.eval.rouge or config.eval.metrics)
    loading.check_length(base, longest, prompt + config.eval.generate_tokens if generates else 0)
    handle = ModelHandle(
        base.model,
        layout_of(base, m.targets),
        recipe.space,
        lora_alpha=m.lora_alpha,
        dropout=m.lora_dropout,
        objective=objectives.of(config),
    )
    return Resident(base, handle.layout, handle)
