"""The singular value decomposition of a product B A from its two tall factors: O((o + i) R^2 + R^3), float64.

    by QR      B = Q_b R_b, A^T = Q_a R_a;  R_b R_a^T = U S V;           U := Q_b U, V := V Q_a^T
    by Gram    B^T B = F F^T, M = F^T (A A^T) F = W S^2 W^T;             V = S^-1 W^T F^T A, U = B (A A^T) F W S^-2

QR is as precise as float64 allows. Gram matrices are several times faster where only the largest values are wanted.
"""

import torch
from torch import Tensor

Triple = tuple[Tensor, Tensor, Tensor]
"""(U: [o, q], S: [q] descending, V: [q, i]), float64."""


def svd(b: Tensor, a: Tensor, rank: int | None = None) -> Triple:
    """U diag(S) V, the best approximation of B A of rank q = min(rank, R, o, i) (Eckart-Young).

    Signs are fixed (the largest entry of each column of U is positive), so equal factors give equal output.

    Args:
        b: B, [o, R], any float dtype.
        a: A, [R, i], likewise.
        rank: how many singular values are wanted; None: all.
    """
    u, s, v = by_gram(b, a, rank) or by_qr(b, a, rank)
    if s.numel():
        sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))).squeeze(0)
        sign[sign == 0] = 1
        u, v = u * sign, v * sign[:, None]
    return u, s, v


def by_qr(b: Tensor, a: Tensor, rank: int | None) -> Triple:
    """`svd` through QR of both factors, without fixed signs; only the kept columns of the bases are written out."""
    (hb, tb), (ha, ta) = torch.geqrf(b.double()), torch.geqrf(a.double().T)
    rb, ra = hb[: len(a)].triu(), ha[: len(a)].triu()
    u, s, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
    return _times_basis(hb, tb, u[:, :rank]), s[:rank], _times_basis(ha, ta, v[:rank].T).T


def values(b: Tensor, a: Tensor) -> Tensor:
    """All singular values of B A, descending, float64 [min(R, o, i)], through QR of both factors."""
    rb, ra = (torch.linalg.qr(x.double(), mode="r")[1] for x in (b, a.T))
    return torch.linalg.svdvals(rb @ ra.T)


def by_gram(b: Tensor, a: Tensor, rank: int | None) -> Triple | None:
    """`svd` through Gram matrices, without fixed signs; None where these are not precise enough or nothing is cut.

    Nothing is solved, so what is not kept may be singular. M is known to |F|^2 |A A^T| 2^-52, hence column j of U and
    row j of V to 2^-52 (|F|^2 |A A^T|) / s_j^2. What is kept must be above 1e-5 of sqrt(|F|^2 |A A^T|), which is no
    less than the largest singular value: then that is 2e-6, for a direction of weight 1e-5.
    """
    if rank is None or not 0 < rank < len(a) <= min(len(b), a.shape[1]):
        return None
    b, a = b.double(), a.double()
    gb, ga = gram(b.T), gram(a)
    half = _square_root(gb)
    squares, w = torch.linalg.eigh(half.T @ ga @ half)
    squares, w = squares[-rank:].flip(0), w[:, -rank:].flip(1)
    if not squares[-1] > 1e-10 * gb.norm() * ga.norm():
        return None
    s, kept = squares.sqrt(), half @ w
    return ((ga @ kept / squares).T @ b.T).T, s, (kept / s).T @ a


def gram(x: Tensor) -> Tensor:
    """x x^T, [R, R] of x: [R, d]; strips of the lower triangle, mirrored: a third less work than one product."""
    found, strip = x.new_zeros(len(x), len(x)), max(64, -(-len(x) // 3))
    for first in range(0, len(x), strip):
        last = min(first + strip, len(x))
        torch.mm(x[first:last], x[:last].T, out=found[first:last, :last])
    return found.tril() + found.tril(-1).T


def _times_basis(h: Tensor, tau: Tensor, x: Tensor) -> Tensor:
    """The product Q x with the orthonormal basis Q: [d, R] that `torch.geqrf` returned as (h, tau); x: [R, n]."""
    long = torch.nn.functional.pad(x, (0, 0, 0, len(h) - len(x)))
    return torch.ormqr(h[:, : len(tau)], tau, long)


def _square_root(square: Tensor) -> Tensor:
    """F with F F^T = `square`: the Cholesky factor, or from eigenvectors where `square` is singular."""
    factor, failed = torch.linalg.cholesky_ex(square)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(square)
    return vectors * values.clamp(min=0).sqrt()
