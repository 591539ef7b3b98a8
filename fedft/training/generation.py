"""Greedy generation of several rows at a time, each as it would be alone.

Prompts of a batch are padded on the left, which the attention mask says; of an encoder-decoder on the right. A model
that does not heed the mask in its positions or its states writes something else then: the first batch of unlike lengths
is tried on its shortest prompt, and a model that fails generates one row at a time from then on.
"""

import logging
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fedft.models.handle import ModelHandle

log = logging.getLogger(__name__)

_together: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()
"""Whether padded prompts give what they give alone, by model; models that were not tried are not in it."""


def continued(
    handle: ModelHandle, tokenizer: Any, prompts: Sequence[Sequence[int]], new_tokens: int, pad_id: int
) -> list[str]:
    """The greedy continuation of each prompt, or what a decoder writes of it, as text without special tokens.

    Args:
        handle: the model, in evaluation mode.
        tokenizer: its tokenizer.
        prompts: token ids, none empty.
        new_tokens: at most so many each.
        pad_id: a token id that the model has; it fills up shorter prompts and is masked.
    """
    if len({len(p) for p in prompts}) > 1 and not _padding_is_harmless(handle, tokenizer, prompts, new_tokens, pad_id):
        return [_written(handle, tokenizer, [p], new_tokens, pad_id)[0] for p in prompts]
    return _written(handle, tokenizer, prompts, new_tokens, pad_id)


def _padding_is_harmless(handle: ModelHandle, tokenizer: Any, prompts: Any, new_tokens: int, pad_id: int) -> bool:
    model = handle.model
    if model not in _together:
        pair = [min(prompts, key=len), max(prompts, key=len)]
        alone, padded = (_written(handle, tokenizer, some, new_tokens, pad_id)[0] for some in (pair[:1], pair))
        _together[model] = alone == padded
        if alone != padded:
            log.info("this model writes other texts where prompts are padded: they are generated one at a time")
    return _together[model]


def _written(handle: ModelHandle, tokenizer: Any, prompts: Any, new_tokens: int, pad_id: int) -> list[str]:
    longest, device = max(map(len, prompts)), next(handle.model.parameters()).device

    def padded(row: list[int], value: int) -> list[int]:
        fill = [value] * (longest - len(row))
        return row + fill if handle.two_sided else fill + row

    ids = torch.tensor([padded(list(p), pad_id) for p in prompts], device=device)
    mask = torch.tensor([padded([1] * len(p), 0) for p in prompts], device=device)
    with torch.no_grad():
        out = handle.model.generate(  # type: ignore[operator]
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=tokenizer.pad_token_id,
        )
    before = 1 if handle.two_sided else longest  # a decoder's start token, or the prompts once more
    return [tokenizer.decode(row[before:], skip_special_tokens=True) for row in out]
