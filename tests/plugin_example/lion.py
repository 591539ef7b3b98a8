"""Lion: steps of the sign of an interpolated momentum.

    w -= lr (sign(b1 m + (1 - b1) g) + decay w);   m := b2 m + (1 - b2) g

Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, arXiv:2302.06675.
"""

import torch


class Lion(torch.optim.Optimizer):
    """One buffer per parameter."""

    def __init__(self, parameters, lr, weight_decay=0.0):
        """`lr`: the size of every entry's step."""
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every parameter that has a gradient."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_((0.9 * m + 0.1 * p.grad).sign(), alpha=group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


def lion(parameters, lr, local):
    """Lion with the run's weight decay."""
    return Lion(parameters, lr, local.weight_decay)


lion.elementwise = True  # clients may share passes
