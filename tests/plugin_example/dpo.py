"""DPO: of two responses to one prompt the chosen one is to gain on the rejected one, measured against the base model.

    L = -log sigmoid(beta [(log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))])

p0 is the base: the same model with the adapter switched off. Rows have `prompt`, `chosen` and `rejected`.

Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, arXiv:2305.18290.
"""

import torch
from torch.nn import functional

from fedft.contract import Objective
from fedft.data import batches, examples
from fedft.training.objectives import next_tokens


class DPO(Objective):
    """Preference pairs; a batch is all the chosen rows and then all the rejected ones."""

    def __init__(self, beta: float = 0.1) -> None:
        """`beta`: how far the model may go from the base."""
        self.beta = beta

    def encode(self, record, base, config, where):
        """(chosen, rejected) in tokens, both behind the run's prompt template."""
        d, both = config.data, ("{chosen}", "{rejected}")
        known = {"prompt": d.prompt, "tokenizer": base.tokenizer, "max_length": d.max_length}
        known |= {"max_prompt": d.max_prompt, "where": where}
        return tuple(examples.encode_generation(record, response=response, **known) for response in both)

    def collate(self, examples_, pad_id):
        """[2 n, T]: chosen before rejected."""
        return batches.collate([pair[k] for k in (0, 1) for pair in examples_], pad_id)

    def loss(self, handle, batch):
        """Mean over pairs."""
        return -functional.logsigmoid(self._margins(handle, batch)).mean()

    def measure(self, handle, batch):
        """Loss, and how often the chosen response gained more."""
        margins = self._margins(handle, batch)
        loss, won = -functional.logsigmoid(margins).sum(), (margins > 0).sum()
        return {"loss": (float(loss), len(margins)), "accuracy": (float(won), len(margins))}

    def _margins(self, handle, batch):
        now = self._log_p(handle, batch)
        with torch.no_grad(), handle.without_adapter():
            before = self._log_p(handle, batch)
        chosen, rejected = (now - before).chunk(2)
        return self.beta * (chosen - rejected)

    def _log_p(self, handle, batch):
        logits = handle.forward({k: x for k, x in batch.items() if k != "labels"}).logits.float()
        wanted = next_tokens(batch["labels"]).to(logits.device)
        terms = functional.cross_entropy(logits.mT, wanted, reduction="none", ignore_index=examples.IGNORED)
        return -terms.sum(1)
