"""One answer to a prompt and whether people liked it: what was liked is to become likelier, what was not less likely.

    L = 1 - sigmoid(s beta (log p(y) - log p0(y))),    s = 1 where liked, else -1

p0 is the model as the run began. Rows have `prompt`, `response` and what `[data] label` names: 1, "up" or true, or not.

Ethayarajh et al., "Model Alignment as Prospect Theoretic Optimization", ICML 2024, arXiv:2402.01306, without its
reference point.
"""

import torch

from fedft.contract import Objective
from fedft.data import batches, examples
from fedft.training.preferences import log_probabilities


class Thumbs(Objective):
    """A batch is tokens, and +1 or -1 for each row."""

    needs_reference = True

    def __init__(self, beta: float = 0.1) -> None:
        """`beta`: how far the model may go from where it began."""
        self.beta = beta

    def encode(self, record, base, config, where):
        """(example, whether it was liked)."""
        liked = str(record.get(config.data.label)).casefold() in ("1", "up", "true")
        return examples.encode(record, base, config, where), liked

    def collate(self, rows, pad_id):
        """The examples' tensors, and `sign`: float32 [n]."""
        signs = torch.tensor([1.0 if liked else -1.0 for _, liked in rows])
        return {**batches.collate([example for example, _ in rows], pad_id), "sign": signs}

    def loss(self, handle, batch):
        """Mean over rows."""
        return (1 - torch.sigmoid(self._gains(handle, batch))).mean()

    def measure(self, handle, batch):
        """Loss, and how often what was liked gained, and what was not lost."""
        gains = self._gains(handle, batch)
        loss, right = (1 - torch.sigmoid(gains)).sum(), (gains > 0).sum()
        return {"loss": (float(loss), len(gains)), "accuracy": (float(right), len(gains))}

    def _gains(self, handle, batch):
        text = {name: x for name, x in batch.items() if name != "sign"}
        with torch.no_grad(), handle.without_adapter():
            before, _ = log_probabilities(handle, text)
        now, _ = log_probabilities(handle, text)
        return batch["sign"].to(now.device) * self.beta * (now - before)
