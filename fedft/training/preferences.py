"""Objectives on pairs of answers to one prompt, of which one was chosen: DPO and ORPO.

log p(y) is the sum of the log-probabilities of the tokens of an answer, its end token among them, given the prompt and
what stands before. A batch is the chosen rows and then the rejected ones, all padded to one length.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fedft import check
from fedft.contract import Batch, Objective
from fedft.data import batches, preferences
from fedft.data.examples import IGNORED
from fedft.data.preferences import Pair
from fedft.reports.columns import Column, declare
from fedft.training.objectives import OfLogits, next_tokens

MARGIN = declare(Column("margin", "margin", better="higher"))
"""By how much the reward of the chosen answer is above that of the rejected one, mean over pairs."""
CERTAIN = -1e-6
"""The largest mean log-probability whose odds are told apart: above it they would overflow, and their gradient."""


def log_probabilities(handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum of the log-probabilities of the learned tokens, their number) of every row: float32 [rows], int64 [rows].

    Args:
        handle: a `fedft.models.handle.ModelHandle`, in whatever mode it is in.
        batch: input_ids, attention_mask and labels, int64 [rows, length].
    """
    logits, right = handle.learned_logits(batch)
    learned = (next_tokens(batch["labels"]) != IGNORED).to(logits.device)
    terms = -OfLogits().each(logits, right)
    places = torch.zeros(learned.shape, dtype=terms.dtype, device=terms.device).masked_scatter(learned, terms)
    return places.sum(1), learned.sum(1)


class Preferences(Objective):
    """The base of objectives on pairs: a subclass says the loss and the margin of each pair of a batch."""

    needs_reference = False
    """Whether it compares with the model without what is trained, which full fine-tuning does not have."""

    def of_pairs(self, handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, reward of the chosen answer - reward of the rejected one) of every pair, float32 [pairs] each."""
        raise NotImplementedError

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Pair:
        """One record as a pair of examples; see `preferences.encode`."""
        return preferences.encode(record, base, config, where)

    def collate(self, examples: Sequence[Pair], pad_id: int) -> Batch:
        """Pairs as one batch of twice as many rows, the chosen ones before the rejected ones; `batches.collate`."""
        return batches.collate([*(e.chosen for e in examples), *(e.rejected for e in examples)], pad_id)

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean over pairs, a scalar with a graph unless gradients are off."""
        return self.of_pairs(handle, batch)[0].mean()

    def losses(self, handle: Any, batch: Batch) -> Tensor:
        """The loss of every pair, [pairs], with a graph unless gradients are off."""
        return self.of_pairs(handle, batch)[0]

    def weight(self, handle: Any, batch: Batch) -> float:
        """How many terms the loss of a batch is the mean of: its pairs."""
        return len(batch["labels"]) / 2

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """{"loss", "accuracy", "margin"}: (sum over pairs, number of pairs) of each.

        Accuracy is the share of pairs in which the chosen answer has the higher reward.
        """
        losses, margins = self.of_pairs(handle, batch)
        sums = {"loss": losses.sum(), "accuracy": (margins > 0).sum(), "margin": margins.sum()}
        return {name: (float(x), float(len(losses))) for name, x in sums.items()}


class DPO(Preferences):
    """Direct preference optimisation: the chosen answer is to gain on the rejected one, measured against w0.

        L = -log sigmoid(r(chosen) - r(rejected)),    r(y) = beta (log p(y) - log p0(y))

    p0 is the model as the run began: the adapter switched off, and what a strategy has merged into the base since
    undone. So a run that begins at w0 begins at L = log 2.

    Rafailov et al., "Direct Preference Optimization: Your Language Model is Secretly a Reward Model", NeurIPS 2023,
    arXiv:2305.18290.
    """

    needs_reference = True

    def __init__(self, beta: float = 0.1) -> None:
        """`beta`: how much a step away from w0 counts, above 0; small ones let the model go further from it."""
        check.above(0, beta=beta)
        self.beta = beta

    def of_pairs(self, handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, margin of rewards) of every pair, float32 [pairs] each; two passes of the model."""
        learning = torch.is_grad_enabled()
        handle.training(False)  # the reference drops nothing
        with torch.no_grad(), handle.without_adapter():
            before, _ = log_probabilities(handle, batch)
        handle.training(learning)
        now, _ = log_probabilities(handle, batch)
        chosen, rejected = (self.beta * (now - before)).chunk(2)
        return -functional.logsigmoid(chosen - rejected), chosen - rejected


class ORPO(Preferences):
    """Odds ratio preference optimisation: the chosen answer is learned, and its odds are to rise above the other's.

        L = -l(chosen) - beta log sigmoid(log odds(chosen) - log odds(rejected))
        l(y) = log p(y) / tokens of y,    odds(y) = e^l(y) / (1 - e^l(y))

    There is no reference model: one pass, and full fine-tuning will do. Rewards are beta l(y).

    Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model", EMNLP 2024, arXiv:2403.07691.
    """

    def __init__(self, beta: float = 0.1) -> None:
        """`beta`: weight of the second part, lambda in the paper; above 0."""
        check.above(0, beta=beta)
        self.beta = beta

    def of_pairs(self, handle: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """(loss, margin of rewards) of every pair, float32 [pairs] each."""
        sums, counts = log_probabilities(handle, batch)
        chosen, rejected = mean = (sums / counts).chunk(2)
        odds, other = (x - torch.log(-torch.expm1(x.clamp(max=CERTAIN))) for x in mean)
        return -chosen - self.beta * functional.logsigmoid(odds - other), self.beta * (chosen - rejected)
