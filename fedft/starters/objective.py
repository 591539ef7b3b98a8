"""example: the focal loss, (1 - p)^gamma -log p for the probability p of the true token or class.

Say here what is minimised, and which paper it is from.
"""

from torch import Tensor
from torch.nn import functional

from fedft import check
from fedft.training.objectives import OfLogits


class Example(OfLogits):
    """Terms that count less where the model is sure already."""

    def __init__(self, gamma: float) -> None:
        """`gamma`: how much less; 0 is cross entropy."""
        self.gamma = gamma

    def terms(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Of every learned place."""
        loss = functional.cross_entropy(logits, wanted, reduction="none")
        return (1 - (-loss).exp()) ** self.gamma * loss


def example(*, gamma: float = 2.0) -> Example:
    """Cross entropy weighed by (1 - p)^gamma."""
    check.at_least(0, gamma=gamma)
    return Example(gamma)
