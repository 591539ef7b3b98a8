"""A copy of the base that learns what an audit has generated, so that the next text says something new.

The iterative form of contrastive generation: after each sample the copy takes one step on it, and what was said once is
no contrast any more. The copy is the base loaded once more with an adapter of LoRA of its own; neither the audited
model nor its base is touched.
"""

import torch
from torch import Tensor

from fedft.models.handle import ModelHandle
from fedft.privacy.audit.contrastive import Sample

RATE = 1e-2
"""Of AdamW on the adapter: high, for each text is seen once."""


class LearningCopy:
    """`contrasts.Learner` on a handle that stands at the base, with an adapter whose parameters learn."""

    def __init__(self, handle: ModelHandle) -> None:
        self._handle = handle
        self._optimizer = torch.optim.AdamW(list(handle.parameters().values()), lr=RATE, weight_decay=0.0)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits float32 [n, vocabulary] on the CPU of what follows each of n texts, int64 [n, length]."""
        with torch.no_grad():
            return self._logits(ids)[:, -1].float().cpu()

    def learn(self, sample: Sample) -> None:
        """Take one step on what was written behind the start of a sample; of nothing there is none to take."""
        if not sample.written:
            return
        ids = torch.tensor([[*sample.given, *sample.written]])
        logits = self._logits(ids)[0, len(sample.given) - 1 : -1].float()
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(sample.written, device=logits.device))
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _logits(self, ids: Tensor) -> Tensor:
        self._handle.training(False)
        found: Tensor = self._handle.forward({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        return found
