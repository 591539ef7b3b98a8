"""A vector x of d numbers as its coordinates on K random directions, and back: x ~ Z gamma.

    unbiased    Z^T x / K                       mean of Z gamma over seeds = x
    mmse        Z^T x / (K + d + kappa - 2)     least mean squared error of all multiples; for `hadamard` see projection
    projection  Z^T x / max(K, d)               the orthogonal projection where directions are orthogonal
    norm        a multiple of Z^T x             |Z gamma| = |x|
    lstsq       the gamma of least |Z gamma - x|, the projection on whatever directions there are

|Z gamma - x|^2 = e |x|^2 on average, for unbiased coordinates and independent entries e = (d + kappa - 2) / K with
kappa = 1 (signs), 3 (normal), 9/5 (uniform). The columns of `hadamard` are orthogonal over full blocks of 4096 and over
tensors of 2^n elements, K <= 2^n: there e = d/K - 1 unbiased and 1 - K/d projected; elsewhere about so, within 0.3.
Directions have entries of mean 0 and variance 1 (`fedft.randomness.directions`); x is float32, gamma float32 [K].
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fedft.randomness.directions import Directions

SCALES = ("unbiased", "mmse", "projection", "norm", "lstsq")
LEAVES_LESS = ("projection", "mmse", "lstsq")  # |x - Z gamma| < |x|
KAPPA = {"rademacher": 1.0, "gaussian": 3.0, "table": 9 / 5}
LEAST = 2  # directions for every block: one that came out small once is not lost for ever
MOST = 4096  # directions for one block: what `hadamard` offers
ITERATIONS = 100
CLOSE = 1e-6


def coordinates(z: Directions, name: str, x: Tensor, scale: str = "unbiased", family: str = "hadamard") -> Tensor:
    """The coordinates gamma of a vector on all K directions, float32 [K], scaled by one of the module's rules.

    Args:
        z: the directions.
        name: the canonical name of the tensor that `x` is.
        x: float32 of d elements, any shape.
        scale: one of SCALES.
        family: the family of `z`, a key of KAPPA or "hadamard"; only "mmse" asks for it.

    >>> from fedft.randomness.independent import Table
    >>> z = Table({"w": torch.tensor([[1.0, 1.0], [1.0, -1.0]])})
    >>> coordinates(z, "w", torch.tensor([3.0, 1.0])).tolist()  # 2 (1, 1) + 1 (1, -1) = (3, 1)
    [2.0, 1.0]
    """
    if scale == "lstsq":
        return least_squares(z, name, x)
    k, d, inner = z.count, x.numel(), z.dot(x, name)
    if scale == "unbiased":
        return (inner / k).float()
    if scale == "norm":
        rebuild(z, name, (inner / k).float(), trial := torch.zeros_like(x))
        return (inner / k * (size(x) / (size(trial) or 1.0))).float()
    if scale == "mmse" and family != "hadamard":
        return (inner / (k + d + KAPPA[family] - 2)).float()
    return (inner / max(k, d)).float()


def least_squares(z: Directions, name: str, x: Tensor) -> Tensor:
    """The coordinates gamma, float32 [K], for which |Z gamma - x| is least: scale "lstsq".

    Conjugate gradients on Z^T Z gamma = Z^T x, each step two passes over the directions, in an order that never varies.
    `hadamard` needs 2 to 10 passes at any size and is exact to 1e-5 where K = d. Independent directions need few while
    K < d / 2, and are stopped at 100: near K = d what they leave may be a tenth.
    """
    left, gamma = x.clone(), torch.zeros(z.count, dtype=torch.float64)
    gradient = z.dot(left, name)
    step, slope = gradient, float((gradient * gradient).sum())
    enough = CLOSE**2 * slope
    for _ in range(ITERATIONS):
        if slope <= enough:
            break
        rebuild(z, name, step, moved := torch.zeros_like(x))
        if not (length := size(moved)):
            break
        gamma += slope / length**2 * step
        left.add_(moved, alpha=-slope / length**2)
        gradient = z.dot(left, name)
        slope, last = float((gradient * gradient).sum()), slope
        step = gradient + slope / last * step
    return gamma.float()


def rebuild(z: Directions, name: str, gamma: Tensor, out: Tensor) -> None:
    """Add Z gamma = sum_j gamma[j] z_j to `out` in place; gamma is float32 [K], `out` contiguous float32."""
    z.axpy_(out, name, gamma)


def size(x: Tensor) -> float:
    """The L2 norm of a tensor of any shape, summed in float64."""
    return float(torch.linalg.vector_norm(x.detach(), dtype=torch.float64))


def allocate(weights: Sequence[float], sizes: Sequence[int], budget: int, most: int = MOST) -> list[int]:
    """How many of `budget` directions each block gets: integers K_l in proportion to the weights, sum K_l = budget.

    The total error of unbiased coordinates, sum_l d_l |x_l|^2 / K_l, is least for weights sqrt(d_l) |x_l| (Lagrange).
    Weights |x_l| do the same among blocks of one size, and make the coordinates of all blocks of like size. Computed in
    plain float64, so that server and clients agree to the last direction.

    Args:
        weights: of each block, >= 0; if all are zero, sqrt(d_l) is taken.
        sizes: d_l, the elements of each block; K_l <= d_l.
        budget: directions for all blocks together; if it is more than all may have, each gets min(d_l, most).
        most: directions for one block; none gets fewer than 2, or d_l where that is less.
    Returns:
        K_l for each block. Fractions are rounded down, then the largest remainders up, earlier blocks first.
    Raises:
        ValueError: the budget is below the least that all blocks together must have.

    >>> allocate(weights=[3.0, 1.0, 0.0], sizes=[100, 100, 100], budget=10)
    [6, 2, 2]
    """
    ceiling = [min(d, most) for d in sizes]
    floor = [min(d, LEAST) for d in ceiling]
    if sum(floor) > budget:
        raise ValueError(f"K = {budget} cannot give {LEAST} to each of {len(sizes)} blocks; wanted K >= {sum(floor)}")
    total, largest = min(budget, sum(ceiling)), max(weights, default=0.0)
    parts = [w / largest if largest else math.sqrt(d) for w, d in zip(weights, sizes, strict=True)]

    def shares(c: float) -> list[float]:
        return [min(most, max(least, c * p)) for p, least, most in zip(parts, floor, ceiling, strict=True)]

    low, high = 0.0, 2.0**60  # a part below 2^-48 of the largest is as good as none
    for _ in range(120):
        middle = (low + high) / 2
        low, high = (middle, high) if math.fsum(shares(middle)) <= total else (low, middle)
    exact = shares(low)
    counts = [int(s) for s in exact]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - exact[i])
    while (left := total - sum(counts)) > 0:
        for i in [i for i in order if counts[i] < ceiling[i]][:left]:
            counts[i] += 1
    return counts
