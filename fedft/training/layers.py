"""Transformer layers by the names of their tensors, and training of the last ones by back-propagation alone.

A tensor belongs to the layer whose number is the first component of digits in its name: `model.layers.3.mlp.weight` is
in layer 3. Tensors without such a component (embeddings, the final norm, a head) are in no layer.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from fedft.contract import Batch, Handle, Turn
from fedft.training import first_order, optimizers


def layer_of(name: str) -> tuple[str, int] | None:
    """(path of the layer that a tensor is in, its number); None for a tensor that is in no layer.

    >>> layer_of("model.layers.3.mlp.weight"), layer_of("model.norm.weight")
    (('model.layers.3', 3), None)
    """
    path = name.split(".")
    at = next((i for i, component in enumerate(path) if component.isdigit()), None)
    return None if at is None else (".".join(path[: at + 1]), int(path[at]))


def by_layer(names: Sequence[str]) -> list[list[str]]:
    """The names of each layer together, and those of no layer together; in order of first appearance.

    >>> by_layer(["embed", "layers.0.q", "layers.0.v", "layers.1.q", "norm"])
    [['embed', 'norm'], ['layers.0.q', 'layers.0.v'], ['layers.1.q']]
    """
    found: dict[str, list[str]] = {}
    for name in names:
        at = layer_of(name)
        found.setdefault(at[0] if at else "", []).append(name)
    return list(found.values())


class LastLayers:
    """The layers from a number on, and a head, under the run's own optimiser.

    Everything below has `requires_grad=False` while a loss is differentiated, so autograd keeps no graph of it and
    stops there.
    """

    def __init__(self, handle: Handle, first: int, turn: Turn, learning_rate: float) -> None:
        """Choose among what `handle` trains and make a fresh optimiser by `turn.local`.

        Args:
            handle: on the model.
            first: number of the first layer that is trained by back-propagation.
            turn: the client's turn; its `[local]` table has optimiser and clipping.
            learning_rate: of these layers.
        Raises:
            ValueError: all trained tensors are in these layers, or none is.
        """
        self._handle, everything, head = handle, handle.parameters(), handle.layout.head
        self.live: dict[str, nn.Parameter] = {
            n: p for n, p in everything.items() if n in head or ((at := layer_of(n)) and at[1] >= first)
        }
        """The parameters of these layers and of the head, by name."""
        self._others = [p for n, p in everything.items() if n not in self.live]
        if not self.live or not self._others:
            where = "all" if self.live else "no"
            raise ValueError(f"first_order_from = {first}: {where} trained tensors are in layers from there on")
        self._max_norm = turn.local.max_grad_norm or math.inf
        self._optimizer = optimizers.optimizer_of(list(self.live.values()), learning_rate, turn.local)

    def differentiate(self, batch: Batch) -> bool:
        """Compute and clip the gradients of these layers on a batch; whether loss and norm are finite."""
        self.forget()  # those of a step that was skipped
        with first_order.frozen(self._others):
            loss = first_order.differentiate(self._handle, batch, list(self.live.values()))
        norm = torch.nn.utils.clip_grad_norm_(self.live.values(), self._max_norm)
        return bool(torch.isfinite(loss) & torch.isfinite(norm).to(loss.device))

    def step(self) -> None:
        """Take one optimiser step by the gradients of the last `differentiate`, and drop them."""
        self._optimizer.step()
        self.forget()

    def finish(self) -> None:
        """Behind the last step: drop the gradients, and leave the layers where their optimiser wants them."""
        self.forget()
        first_order.settle(self._optimizer)

    def forget(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad(set_to_none=True)
