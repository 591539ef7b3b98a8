"""NEFTune: uniform noise on the embeddings of a batch, in training alone.

    x := x + u alpha / sqrt(T d),   u uniform on [-1, 1]        T tokens of the padded batch, d the width

Jain et al., "NEFTune: Noisy Embeddings Improve Instruction Finetuning", ICLR 2024, arXiv:2310.05914.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fedft.errors import ConfigError


def switch_on(model: nn.Module, alpha: float) -> None:
    """Have the input embeddings of a transformers model give noisy values whenever the model is in training mode.

    The noise is drawn from torch's own state, which a client's turn seeds. Raises ConfigError for a model that does not
    say which its embeddings are.
    """
    try:
        embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError) as e:
        raise ConfigError(
            f"[local] neftune_alpha: a {type(model).__name__} does not say which its embeddings are; leave it out"
        ) from e

    def add(layer: nn.Module, given: Any, x: Tensor) -> Tensor | None:
        if not layer.training:
            return None
        most = alpha / (x.shape[-2] * x.shape[-1]) ** 0.5
        return x + torch.empty_like(x).uniform_(-most, most)

    embeddings.register_forward_hook(add)
