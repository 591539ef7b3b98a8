"""The bound on scalars that clients send in place of weights: what clipped zeroth-order steps can reach."""

from torch import Tensor

from fedft.errors import RejectedUpdate
from fedft.training import zeroth_rules
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan


def check_scalars(scalars: Tensor, how: Walk, plan: Plan, unit: float) -> None:
    """Raise RejectedUpdate("scalar_bound") where sum |c_j| is more than the plan's steps by the rule can come to.

    Args:
        scalars: c, float of any precision, [number of directions]; what a codec may have added is allowed for.
        how: the rule, its clip and its momentum.
        plan: how many steps there were.
        unit: c of a step whose slope is 1: the learning rate where that is folded in, else 1.
    """
    bound = plan.steps * how.largest_step() * unit
    if not zeroth_rules.within(scalars, bound):
        raise RejectedUpdate("scalar_bound", f"sum of |scalars| exceeds {bound:g}, what {plan.steps} steps can reach")
