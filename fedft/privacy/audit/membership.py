"""Membership inference by loss: whether a record's loss tells that the model was trained on it.

    LOSS         score = loss of the row under the tuned model
    calibrated   score = loss under the tuned model - loss under the base

A smaller score says "member". Yeom et al. 2018, arXiv:1709.01604; calibrated: Watson et al. 2022, arXiv:2111.08440.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

FEWEST = 100
"""Rows of either kind below which no rate of few false positives is reported: it would be made of a row or two."""
RATES = (0.01, 0.05)


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """The probability that a member's score is smaller than another row's; ties count half. Both are not empty.

    >>> auc([1, 2], [2, 3])
    0.875
    """
    ordered = sorted(members)
    twice = sum(bisect_left(ordered, x) + bisect_right(ordered, x) for x in others)
    return twice / (2 * len(members) * len(others))


def tpr_at(rate: float, members: Sequence[float], others: Sequence[float]) -> float:
    """The share of members at or below a threshold which at most `rate` of the other rows are at or below.

    The threshold is the largest score of another row for which that is so; where there is none, the share is 0. So
    scores that are all tied give 0.

    >>> tpr_at(0.5, [1, 2, 3], [2, 4]), tpr_at(0.5, [1, 1], [1, 1])
    (0.6666666666666666, 0.0)
    """
    ordered = sorted(others)
    fine = [x for x in ordered if bisect_right(ordered, x) <= rate * len(ordered)]
    return sum(x <= fine[-1] for x in members) / len(members) if fine else 0.0


def figures(members: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """`auc` and, of enough rows, `tpr_at_1` and `tpr_at_5`: the share of members found at so many % false positives."""
    found = {"auc": auc(members, others)}
    if min(len(members), len(others)) >= FEWEST:
        found |= {f"tpr_at_{100 * rate:.0f}": tpr_at(rate, members, others) for rate in RATES}
    return found


def measured(
    members: tuple[Sequence[float], Sequence[float]], others: tuple[Sequence[float], Sequence[float]]
) -> dict[str, Any]:
    """The figures of both scores, and how many rows they are of.

    Each argument is the losses of rows under (the tuned model, the base), in one order: of rows that were trained on,
    and of rows that were not.
    """
    calibrated = [[tuned - base for tuned, base in zip(*of, strict=True)] for of in (members, others)]
    return {
        "members": len(members[0]),
        "others": len(others[0]),
        "loss": figures(members[0], others[0]),
        "calibrated": figures(*calibrated),
    }
