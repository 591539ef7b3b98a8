"""The factor B fitted to a matrix D while A stays: C A near D, all from factors, D itself never multiplied out.

least squares   argmin_C |D - C A|_F = D A^+
ridge           argmin_C |D - C A|_F^2 + lam tr(A A^T) / r |C - B|_F^2
cosine          argmin_C 1 - cos(D, C A) + lam |C - B|_F^2
"""

import torch
from torch import Tensor

from fedft.arithmetic.lowrank import LowRank


def least_squares(target: LowRank, a: Tensor) -> Tensor:
    """The C with C A nearest to `target`: float32 [o, R], for A: [R, i]; singular values of A below 1e-6 count as 0."""
    return (target.B.double() @ target.A.double() @ torch.linalg.pinv(a.double(), rtol=1e-6)).float()


def ridge(target: LowRank, start: LowRank, lam: float) -> Tensor:
    """The C of the closed form B + (D A^T - B G)(G + lam tr(G) / r I)^-1 with G = A A^T, in B's dtype.

    B itself where rounding would make the product worse: C A is never further from D than B A is.

    Args:
        target: D.
        start: the pair of B and A.
        lam: weight of |C - B|^2 relative to the mean squared length of A's rows; with 0, ranks that A lacks stay.
    """
    A, B = start.A.double(), start.B.double()
    G = A @ A.T
    missing = target @ A.T - B @ G  # (D - B A) A^T
    g, Q = torch.linalg.eigh(G)
    there = g > start.rank * torch.finfo(G.dtype).eps * g.max() if start.rank else g > 0
    inverse = torch.where(there, 1 / torch.where(there, g + lam * g.sum() / max(start.rank, 1), 1), 0)
    fitted = (B + missing @ (Q * inverse) @ Q.T).to(start.B.dtype)
    step = fitted.double() - B
    gained = 2 * torch.sum(missing * step) - torch.sum(step @ G * step)  # |D - B A|^2 - |D - C A|^2
    return fitted if gained > 0 else start.B


def cosine(target: LowRank, start: LowRank, lam: float, most: int = 1000, tolerance: float = 1e-8) -> Tensor:
    """The C found by gradient descent with a line search from B, in B's dtype.

    B itself where the objective does not decrease on rounded values, or where D or B A is zero.

    Args:
        target: D.
        start: the pair of B and A.
        lam: weight of |C - B|^2 as it is.
        most: steps at most.
        tolerance: relative decrease of the objective below which the search ends.
    """
    A, B = start.A.double(), start.B.double()
    G, X, length = A @ A.T, target @ A.T, target.norm()

    def objective(C: Tensor) -> tuple[float, Tensor]:
        """The objective and its gradient in C; D and C A enter by X = D A^T and G."""
        CG = C @ G
        product = torch.sum(CG * C).clamp(min=0).sqrt() * length
        cos = torch.sum(X * C) / product
        gradient = -X / product + cos * CG * (length / product) ** 2 + 2 * lam * (C - B)
        return float(1 - cos + lam * (C - B).square().sum()), gradient

    if not (length > 0 and torch.sum(B @ G * B) > 0):
        return start.B  # no direction to compare
    C, rate = B, 1.0
    first, gradient = objective(C)
    now = first
    for _ in range(most):
        steepness, rate = float(gradient.square().sum()), 2 * rate
        while (found := objective(C - rate * gradient))[0] > now - rate * steepness / 2 and rate > 1e-12:
            rate /= 2
        if not found[0] < now:
            break
        before, (now, C, gradient) = now, (found[0], C - rate * gradient, found[1])
        if before - now <= tolerance * before:
            break
    fitted = C.to(start.B.dtype)
    return fitted if objective(fitted.double())[0] < first else start.B
