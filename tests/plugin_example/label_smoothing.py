"""Label smoothing: a share of every learned place's weight goes to all tokens alike."""

from torch.nn import functional

from fedft.training.objectives import OfLogits


class Smoothed(OfLogits):
    """Cross entropy with smoothed labels; works in shared passes, since it is a mean of terms."""

    def __init__(self, share: float) -> None:
        """`share`: of the weight that is spread."""
        self.share = share

    def terms(self, logits, wanted):
        """Of every learned place."""
        return functional.cross_entropy(logits, wanted, reduction="none", label_smoothing=self.share)


def label_smoothing(*, share: float = 0.1) -> Smoothed:
    """Cross entropy of labels of which `share` is spread over all tokens."""
    return Smoothed(share)
