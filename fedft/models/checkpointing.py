"""Activation checkpointing: layers keep their inputs alone, and compute the rest again when gradients need it.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
"""

from typing import Any

from torch import nn

from fedft.errors import ConfigError


def switch_on(model: nn.Module, source: str) -> None:
    """Have a transformers model checkpoint every layer from now on, in training mode alone; its losses stay the same.

    Args:
        model: may hold adapters already or get them later.
        source: what the message calls it.
    Raises:
        ConfigError: its class has no checkpoints.
    """
    known: Any = model
    how = {"use_reentrant": False}  # the other form gives no gradients where the input of a layer needs none
    try:
        if hasattr(known, "activation_checkpointing_enable"):
            known.activation_checkpointing_enable(how)
        else:
            known.gradient_checkpointing_enable(how)
    except (AttributeError, ValueError) as e:
        raise ConfigError(
            f"[local] checkpointing: {source}, a {type(model).__name__}, cannot compute its layers again; leave it out"
        ) from e
    known.disable_input_require_grads()  # which the other form needs: gradients would run down to the embeddings
