"""Logits of learned places alone: neither prompts nor padding need any, and the output layer is often the largest.

A hook before the output layer hands it the hidden states of learned places, [n, hidden] in place of [rows, length,
hidden]; what a model does to its logits afterwards (a cap, a scale) it does to each by itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedft.contract import Batch
from fedft.data.examples import IGNORED
from fedft.models.transfers import sent
from fedft.training.objectives import of_tokens, predicted


def logits(handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits, what each is to predict) of the n learned places of a batch; see `ModelHandle.learned_logits`."""
    labels, model = batch["labels"], handle.model
    decoded = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if not of_tokens(labels) or (handle.two_sided and decoded is None):
        found, wanted = handle.logits(batch)
        if wanted.dtype != torch.int64:
            return found, wanted  # something is learned of every row
        return found[learned := wanted != IGNORED], wanted[learned]
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    if handle.two_sided and decoded is not None and "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = decoded(labels=labels)
    wanted = predicted(labels, handle.two_sided)
    device = next(model.parameters()).device
    with only(model, learned := wanted != IGNORED, device) as chosen:
        return chosen(handle.forward(inputs).logits), sent(wanted[learned], device)


@contextmanager
def only(model: nn.Module, learned: Tensor, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, one forward pass gives logits of learned places, where the model has an output layer that shows itself.

    Args:
        model: of transformers' kind; others give all logits.
        learned: bool [rows, length]. Where it is on the CPU, no pass waits for a device to count the places.
        device: the model's.
    Yields:
        The function that makes the pass's logits those of the n learned places, [n, vocabulary], either way.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    took: list[bool] = []
    places = tuple(sent(at, device) for at in learned.nonzero(as_tuple=True))

    def select(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not given or given[0].shape[:2] != learned.shape:
            return None
        took.append(True)
        return (given[0][places], *given[1:])

    hook = output.register_forward_pre_hook(select) if isinstance(output, nn.Module) else None
    try:
        yield lambda logits: logits if took else logits[places]
    finally:
        if hook is not None:
            hook.remove()
