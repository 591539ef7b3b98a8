"""Objectives (`fedft.contract.Objective`): the loss of a batch, and the numbers that an evaluation takes of one.

`Likelihood` is the model's own loss, the mean over learned tokens or over rows. `OfLogits` is the base of any other
loss that is a mean of terms, one for each place where something is learned; such an objective also works in shared
passes (`fedft.training.batched_clients`), since its terms can be told apart by client.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fedft import registry
from fedft.config import RunConfig
from fedft.contract import Batch, Objective
from fedft.data import (
    batches,
    chat,
    encoder_decoder,
    examples,
    labels,
    micro_batches,
    own_encoding,
    token_columns,
)
from fedft.errors import ConfigError
from fedft.models import tasks

AT_ONCE = 2**24
"""Logits that are in memory in float32 at once: 64 MiB of them."""


def next_tokens(labels: Tensor) -> Tensor:
    """Labels moved to where they are predicted: place t has the label of token t + 1, the last place IGNORED.

    `labels`: int64 [rows, length]; so is the result.

    >>> from torch import tensor
    >>> next_tokens(tensor([[7, 8, 9]])).tolist()
    [[8, 9, -100]]
    """
    return functional.pad(labels[:, 1:], (0, 1), value=examples.IGNORED)


def predicted(labels: Tensor, two_sided: bool) -> Tensor:
    """What each place predicts: of tokens of a model that continues text the next label, else the label itself.

    `two_sided`: whether the labels are what a decoder writes.
    """
    return next_tokens(labels) if of_tokens(labels) and not two_sided else labels


def widened(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 where they are: sums of exponentials need it."""
    return logits.float() if logits.element_size() < 4 else logits


def of_tokens(labels: Tensor) -> bool:
    """Whether a batch's labels are tokens [rows, length]: integers; others are classes, labels or numbers of rows."""
    return labels.ndim == 2 and labels.dtype == torch.int64


class OfLogits(Objective):
    """The mean of terms over learned places: tokens of a response, or rows of a classification.

    A subclass overrides `terms`; what transformers computes is the default.
    """

    problem_types: ClassVar[tuple[str, ...]] = (labels.SINGLE,)
    """The values of `[model] problem_type` that the terms are for."""

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """The loss of every learned place, float32 [n].

        Args:
            logits: float32 or float64 [n, vocabulary, classes, labels or outputs].
            wanted: the right token or class of each place, int64 [n]: cross entropy; the labels that a row has, bool
                [n, labels]: the mean of their binary cross entropies; its numbers, float32 [n, outputs]: the mean of
                squared errors.
        """
        if wanted.dtype == torch.bool:
            return functional.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="none").mean(-1)
        if wanted.is_floating_point():
            return functional.mse_loss(logits, wanted, reduction="none").mean(-1)
        return functional.cross_entropy(logits, wanted, reduction="none")

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Any:
        """One record as token ids with labels, by the chat template or the templates of `[data]`.

        See `own_encoding.encode` where the run has a function for it, `chat.encode` for records of conversations,
        `token_columns.encode` for those that are tokens already, `encoder_decoder.encode` for the two sides of an
        encoder-decoder, and `examples.encode` for others.
        """
        d = config.data
        if tasks.of(config.model.task).two_sides:
            return encoder_decoder.encode(
                record, prompt=d.prompt, response=d.response, tokenizer=base.tokenizer, max_length=d.max_length,
                max_prompt=d.max_prompt, where=where,
            )  # fmt: skip
        if d.encode is not None:
            return own_encoding.encode(
                record, function=d.encode, tokenizer=base.tokenizer, ids=base.ids, max_length=d.max_length, where=where
            )
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
        """The mean of the terms of a batch: a scalar, with a graph unless gradients are off."""
        logits, wanted = handle.learned_logits(batch)
        return self.each(logits, wanted).mean()

    def losses(self, handle: Any, batch: Batch) -> Tensor:
        """The mean of each row's own terms, [rows], with a graph unless gradients are off; 0 where there are none."""
        logits, wanted = handle.learned_logits(batch)
        terms, labels = self.each(logits, wanted), predicted(batch["labels"], handle.two_sided)
        if labels.dtype != torch.int64:
            return terms  # something is learned of every row
        learned = (labels != examples.IGNORED).view(len(labels), -1).to(terms.device)
        places = torch.zeros(learned.shape, dtype=terms.dtype, device=terms.device).masked_scatter(learned, terms)
        return places.sum(1) / learned.sum(1).clamp(min=1)

    def each(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """`terms` of logits in any dtype, few places at a time where they are many: no copy of all in float32 is made.

        With a graph, what a piece computes is computed again for its gradient.
        """
        rows = max(1, AT_ONCE // max(1, logits.shape[-1]))
        if len(logits) <= rows:
            return self.terms(widened(logits), wanted)
        pieces = zip(logits.split(rows), wanted.split(rows), strict=True)
        if not logits.requires_grad:
            return torch.cat([self.terms(widened(x), of) for x, of in pieces])
        again = partial(checkpoint, lambda x, of: self.terms(widened(x), of), use_reentrant=False)
        return torch.cat([again(x, of) for x, of in pieces])

    def weight(self, handle: Any, batch: Batch) -> float:
        """How many terms the loss of a batch is the mean of: its learned places."""
        wanted = predicted(batch["labels"], handle.two_sided)
        return float(len(wanted) if wanted.dtype != torch.int64 else (wanted != examples.IGNORED).sum())

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """(sum over learned places, number of learned places) of `loss`, and of what else there is to say.

        Of tokens and classes: `accuracy`. Of several labels: `accuracy`, the share of right decisions at 0.5, and
        `micro_f1`, as (2 hits, labels there + labels guessed). Of numbers: `mae`, the mean absolute error.
        """
        logits, wanted = handle.learned_logits(batch)
        count = float(len(wanted))
        found = {"loss": (self.total(logits, wanted), count)}
        if wanted.is_floating_point():
            return {**found, "mae": (float((logits - wanted).abs().double().mean(-1).sum()), count)}
        if wanted.dtype == torch.bool:
            guesses = logits > 0
            right = float((guesses == wanted).double().mean(-1).sum())
            f1 = 2 * float((guesses & wanted).sum()), float(guesses.sum() + wanted.sum())
            return {**found, "accuracy": (right, count), "micro_f1": f1}
        return {**found, "accuracy": (float((logits.argmax(-1) == wanted).sum()), count)}

    def total(self, logits: Tensor, wanted: Tensor) -> float:
        """The sum of the terms of learned places; arguments as in `each`."""
        return float(self.each(logits, wanted).sum())


class Likelihood(OfLogits):
    """The model's own loss: cross entropy of learned tokens or classes, or what else the model computes of labels."""

    problem_types = (labels.SINGLE, labels.MULTI, labels.REGRESSION)

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean over learned tokens, or the loss that a classifier itself computes of its labels; a scalar."""
        wanted = batch.get("labels")
        if wanted is not None and of_tokens(wanted):
            return super().loss(handle, batch)
        if wanted is not None and wanted.dtype == torch.bool:
            batch = {**batch, "labels": wanted.float()}  # the model subtracts from them
        found: Tensor = handle.forward(batch).loss
        return found


def loss_of_rows(objective: Objective) -> Callable[[Any, Batch], Tensor]:
    """(model, batch) -> the loss of every row, [rows]. Raises ConfigError for an objective that does not say it."""
    found: Callable[[Any, Batch], Tensor] | None = getattr(objective, "losses", None)
    if found is None:
        raise ConfigError(
            f"[privacy] mode: objective {type(objective).__name__} does not say the loss of every record by itself "
            "(`losses`, see `fedft.contract.Objective`); 'likelihood' does"
        )
    return found


def of(config: RunConfig) -> Objective:
    """The objective that `[local] objective` names.

    Raises ConfigError if it does not exist, cannot be made, is not for the run's `[model] problem_type`, or if its
    batches cannot be packed as `[local] packing` wants, or taken in pieces as `micro_batch` does.
    """
    found: Objective = registry.objectives.chosen(config.local.objective)
    name, m = registry.named(config.local.objective, "objective")[0], config.model
    if m.problem_type not in (kinds := getattr(found, "problem_types", OfLogits.problem_types)):
        raise ConfigError(
            f"[local] objective {name!r} is for problem_type {', '.join(kinds)}; [model] has {m.problem_type}"
        )
    if config.local.packing and (m.task != tasks.CAUSAL.name or type(found).collate is not OfLogits.collate):
        raise ConfigError(
            f"[local] packing is for rows of tokens to learn, one after the other; task {m.task!r} with "
            f"objective {name!r} has other batches; packing = false would do"
        )
    if config.local.micro_batch is not None and not micro_batches.possible(found):
        raise ConfigError(
            f"[local] micro_batch: objective {name!r} does not say what a piece of a batch counts (`weight`, see "
            "`fedft.contract.Objective`); leave it out"
        )
    return found
