"""Objectives: what is learned from a batch of one form.

`Likelihood` is the model's own loss, mean over learned tokens or over rows. `OfLogits` is the base of any other loss
that is a mean of terms, one for each place where something is learned; such a one also works in shared passes
(`fedft.training.batched_clients`), since its terms can be told apart by client.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from fedft import registry
from fedft.config import RunConfig
from fedft.contract import Batch, Objective
from fedft.data import examples


def next_tokens(labels: Tensor) -> Tensor:
    """Labels [rows, length] where they are predicted: the token at t + 1 stands at t, and nothing is learned last."""
    return functional.pad(labels[:, 1:], (0, 1), value=examples.IGNORED)


class OfLogits(Objective):
    """A mean of terms over learned places; rows are prompts and responses, or texts with a class."""

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The loss of every learned place, float32 [n], by its logits [n, vocabulary] and what should be there [n]."""
        return functional.cross_entropy(logits, wanted, reduction="none")

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Any:
        """One record in tokens, by the templates of `[data]`. Raises DataError."""
        return examples.encode(record, base, config, where)

    def collate(self, examples_: Sequence[Any], pad_id: int) -> Batch:
        """input_ids, attention_mask and labels, padded on the right."""
        return examples.collate(examples_, pad_id)

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean of the terms of a batch."""
        logits, wanted = self._learned(handle, batch)
        return self.terms(logits, wanted).mean()

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """Loss and accuracy over learned places, as sums and how many there are."""
        logits, wanted = self._learned(handle, batch)
        count = float(len(wanted))
        correct = float((logits.argmax(-1) == wanted).sum())
        return {"loss": (self.total(logits, wanted), count), "accuracy": (correct, count)}

    def total(self, logits: Tensor, wanted: Tensor) -> float:
        """The sum of the terms of learned places."""
        return float(self.terms(logits, wanted).sum())

    @staticmethod
    def _learned(handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits in float32 and labels of the places where something is learned."""
        output = handle.forward({k: v for k, v in batch.items() if k != "labels"}).logits.float()
        labels = batch["labels"].to(output.device)
        labels = next_tokens(labels) if labels.ndim == 2 else labels
        learned = labels != examples.IGNORED
        return output[learned], labels[learned]


class Likelihood(OfLogits):
    """The model's own loss: cross entropy of learned tokens or of classes (or whatever it fits)."""

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean that the model itself computes from its labels."""
        found: Tensor = handle.forward(batch).loss
        return found

    def total(self, logits: Tensor, wanted: Tensor) -> float:
        """The sum of cross entropies, in torch's own order."""
        return float(functional.cross_entropy(logits, wanted, reduction="sum"))


def of(config: RunConfig) -> Objective:
    """The objective of a run file. Raises ConfigError for one that does not exist or cannot be made."""
    found: Objective = registry.objectives.chosen(config.local.objective)
    return found
