"""Objectives (`fedft.contract.Objective`): the loss of a batch, and the numbers that an evaluation takes of one.

`Likelihood` is the model's own loss, the mean over learned tokens or over rows. `OfLogits` is the base of any other
loss that is a mean of terms, one for each place where something is learned; such an objective also works in shared
passes (`fedft.training.batched_clients`), since its terms can be told apart by client.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional

from fedft import registry
from fedft.config import RunConfig
from fedft.contract import Batch, Objective
from fedft.data import batches, chat, examples, token_columns
from fedft.errors import ConfigError


def next_tokens(labels: Tensor) -> Tensor:
    """Labels moved to where they are predicted: place t has the label of token t + 1, the last place IGNORED.

    `labels`: int64 [rows, length]; so is the result.

    >>> from torch import tensor
    >>> next_tokens(tensor([[7, 8, 9]])).tolist()
    [[8, 9, -100]]
    """
    return functional.pad(labels[:, 1:], (0, 1), value=examples.IGNORED)


class OfLogits(Objective):
    """The mean of terms over learned places: tokens of a response, or the class of a text.

    A subclass overrides `terms`; cross entropy is the default.
    """

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The loss of every learned place, float32 [n].

        logits: float32 [n, vocabulary or classes]; wanted: the right token or class of each place, int64 [n].
        """
        return functional.cross_entropy(logits, wanted, reduction="none")

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Any:
        """One record as token ids with labels, by the chat template or the templates of `[data]`.

        See `chat.encode` for records of conversations, `token_columns.encode` for those that are tokens already, and
        `examples.encode` for others.
        """
        d = config.data
        if d.tokens is not None:
            return token_columns.encode(record, field=d.tokens, ids=base.ids, max_length=d.max_length, where=where)
        if d.messages is None:
            return examples.encode(record, base, config, where)
        return chat.encode(
            record, field=d.messages, template=d.chat_template, tokenizer=base.tokenizer, max_length=d.max_length,
            where=where,
        )  # fmt: skip

    def collate(self, rows: Sequence[Any], pad_id: int) -> Batch:
        """Examples as one batch of input_ids, attention_mask and labels; see `batches.collate`."""
        return batches.collate(rows, pad_id)

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean of the terms of a batch: a float32 scalar, with a graph unless gradients are off."""
        logits, wanted = self._learned(handle, batch)
        return self.terms(logits, wanted).mean()

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """{"loss", "accuracy"}: (sum over learned places, number of learned places) of each."""
        logits, wanted = self._learned(handle, batch)
        count = float(len(wanted))
        correct = float((logits.argmax(-1) == wanted).sum())
        return {"loss": (self.total(logits, wanted), count), "accuracy": (correct, count)}

    def total(self, logits: Tensor, wanted: Tensor) -> float:
        """The sum of the terms of learned places; arguments as in `terms`."""
        return float(self.terms(logits, wanted).sum())

    @staticmethod
    def _learned(handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits float32 [n, vocabulary or classes], labels int64 [n]) of the n learned places of a batch."""
        output = handle.forward({k: v for k, v in batch.items() if k != "labels"}).logits.float()
        labels = batch["labels"].to(output.device)
        labels = next_tokens(labels) if labels.ndim == 2 else labels
        learned = labels != examples.IGNORED
        return output[learned], labels[learned]


class Likelihood(OfLogits):
    """The model's own loss: cross entropy of learned tokens or classes, or what else the model computes of labels."""

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean loss that the model itself computes from the batch's labels, a scalar."""
        found: Tensor = handle.forward(batch).loss
        return found

    def total(self, logits: Tensor, wanted: Tensor) -> float:
        """The sum of cross entropies, added up in the order of torch's own reduction."""
        return float(functional.cross_entropy(logits, wanted, reduction="sum"))


def of(config: RunConfig) -> Objective:
    """The objective that `[local] objective` names.

    Raises ConfigError if it does not exist, cannot be made, or its batches cannot be packed as `[local] packing` wants.
    """
    found: Objective = registry.objectives.chosen(config.local.objective)
    if config.local.packing and (config.model.task != "causal-lm" or type(found).collate is not OfLogits.collate):
        name = registry.named(config.local.objective, "objective")[0]
        raise ConfigError(
            f"[local] packing is for rows of tokens to learn, one after the other; task {config.model.task!r} with "
            f"objective {name!r} has other batches; packing = false would do"
        )
    return found
