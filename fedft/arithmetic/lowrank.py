"""Changes of a weight matrix kept as factors: D = B A, never multiplied out unless it is merged.

    B: [o, R], A: [R, i]; with D_k = B_k A_k and weights p_k

    stack     B = [p_1 B_1 ... p_n B_n], A = [A_1; ...; A_n]           sum_k p_k D_k, exactly      (FLoRA, eq. 3)
    mean      (sum_k p_k B_k, sum_k p_k A_k)     FedIT's; it lacks sum_k p_k (B_k - B)(A_k - A)    (FedEx-LoRA)
    svd(r)    best approximation of rank r (Eckart-Young) from the two tall factors: O((o + i) R^2 + R^3)

Pairs are in unit-scale form: B carries alpha / r. Algebra runs in float64 and is rounded once to the factors' dtype.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors, weighted_mean

A_SUFFIX, B_SUFFIX = ".lora_A", ".lora_B"


@dataclass(frozen=True)
class LowRank:
    """The matrix B A of shape [o, i]; A: [R, i], B: [o, R], same dtype; R = 0 is the zero matrix."""

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(f"factors do not fit: A {tuple(self.A.shape)}, B {tuple(self.B.shape)}")

    @property
    def rank(self) -> int:
        """Number R of rows of A; the matrix has at most this rank."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i)."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Tensor:
        """B A multiplied out in the factors' dtype, [o, i]. For merging and for tests."""
        return self.B @ self.A

    def norm(self) -> float:
        """Frobenius norm of B A from R x R matrices, float64: |BA|^2 = tr((B^T B)(A A^T)).

        Where terms cancel, Gram matrices lose half the digits, and the two triangles of QR say it: |R_B R_A^T|.
        """
        b, a = self.B.double(), self.A.double()
        gb, ga = _gram(b.T), _gram(a)
        square = torch.sum(gb * ga)
        if square > 1e-6 * gb.norm() * ga.norm():
            return float(square.sqrt())
        rb, ra = torch.linalg.qr(b, mode="r")[1], torch.linalg.qr(a.T, mode="r")[1]
        return float((rb @ ra.T).norm())

    def __add__(self, other: "LowRank") -> "LowRank":
        """Factors side by side: the sum, exactly; ranks add."""
        return LowRank(torch.cat([self.A, other.A]), torch.cat([self.B, other.B], dim=1))

    def __neg__(self) -> "LowRank":
        return LowRank(self.A, -self.B)

    def __rmul__(self, factor: float) -> "LowRank":
        """factor * B A; the factor goes on B."""
        return LowRank(self.A, (factor * self.B.double()).to(self.B.dtype))

    def __matmul__(self, x: Tensor) -> Tensor:
        """B (A x) in float64, with no [o, i] product on the way."""
        return self.B.double() @ (self.A.double() @ x.double())

    def double(self) -> "LowRank":
        """The same matrix with float64 factors."""
        return LowRank(self.A.double(), self.B.double())

    def svd(self, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(U, S, V) in float64 with U: [o, q], S: [q] descending, V: [q, i], q = min(rank, R, o, i).

        U diag(S) V is the best approximation of rank q. Signs are fixed (the largest entry of each column of U is
        positive), so equal input gives equal output. With `rank` below R, Gram matrices do it where they are precise:
        see `_svd_by_gram`.
        """
        u, s, v = self._svd_by_gram(rank) or self._svd_by_qr(rank)
        if s.numel():
            sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))).squeeze(0)
            sign[sign == 0] = 1
            u, v = u * sign, v * sign[:, None]
        return u, s, v

    def _svd_by_qr(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Through the triangles of QR of both factors; their bases are applied to what is kept, never written out."""
        (hb, tb), (ha, ta) = torch.geqrf(self.B.double()), torch.geqrf(self.A.double().T)
        rb, ra = hb[: self.rank].triu(), ha[: self.rank].triu()
        u, s, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        return _turned(hb, tb, u[:, :rank]), s[:rank], _turned(ha, ta, v[:rank].T).T

    def _svd_by_gram(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """Through Gram matrices; None where they are not precise enough or the factors are not tall.

        With B^T B = F F^T and M = F^T (A A^T) F = W S^2 W^T:  V = S^-1 W^T F^T A,  U = B (A A^T) F W S^-2. Nothing is
        solved, so what is not kept may be singular. M is known to |F|^2 |A A^T| 2^-52, hence column j of U and row j
        of V to 2^-52 (|F|^2 |A A^T|) / s_j^2. What is kept must be above 1e-5 of sqrt(|F|^2 |A A^T|), which is no
        less than the largest singular value: then that is 2e-6, for a direction of weight 1e-5.
        """
        if rank is None or not 0 < rank < self.rank <= min(self.shape):
            return None
        b, a = self.B.double(), self.A.double()
        gb, ga = _gram(b.T), _gram(a)
        half = _half(gb)
        squares, w = torch.linalg.eigh(half.T @ ga @ half)
        squares, w = squares[-rank:].flip(0), w[:, -rank:].flip(1)
        if not squares[-1] > 1e-10 * gb.norm() * ga.norm():
            return None
        s, kept = squares.sqrt(), half @ w
        return ((ga @ kept / squares).T @ b.T).T, s, (kept / s).T @ a

    def truncate(self, rank: int | None = None) -> "LowRank":
        """The best approximation of rank <= `rank`; None: exact, dropping only what float32 cannot hold.

        Singular values below 2^-24 of the largest are zero for float32 factors. The root of each value goes to either
        factor, so neither is badly scaled.
        """
        u, s, v = self.svd(rank)
        kept = int((s > s[0] * 2**-24).sum()) if s.numel() else 0
        root = s[:kept].sqrt()
        dtype = self.A.dtype
        return LowRank((root[:, None] * v[:kept]).to(dtype), (u[:, :kept] * root).to(dtype).contiguous())

    def shortened(self) -> "LowRank":
        """The same matrix in at most min(o, i) ranks: as it is where that holds, else truncated exactly."""
        return self if self.rank <= min(self.shape) else self.truncate()


def _gram(x: Tensor) -> Tensor:
    """x x^T of the rows of x: [R, d] -> [R, R]; the lower triangle in strips, a third less work, the other mirrored."""
    gram, strip = x.new_zeros(len(x), len(x)), max(64, -(-len(x) // 3))
    for first in range(0, len(x), strip):
        last = min(first + strip, len(x))
        torch.mm(x[first:last], x[:last].T, out=gram[first:last, :last])
    return gram.tril() + gram.tril(-1).T


def _turned(h: Tensor, tau: Tensor, x: Tensor) -> Tensor:
    """Q x, Q the orthonormal basis that `torch.geqrf` answered as (h, tau)."""
    long = torch.nn.functional.pad(x, (0, 0, 0, len(h) - len(x)))
    return torch.ormqr(h[:, : len(tau)], tau, long)


def _half(gram: Tensor) -> Tensor:
    """F with F F^T = `gram`: the Cholesky factor, or from eigenvectors where the matrix is singular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def zero(o: int, i: int) -> LowRank:
    """The zero matrix of shape [o, i] with rank 0, float32."""
    return LowRank(torch.zeros(0, i), torch.zeros(o, 0))


def stack(items: Iterable[tuple[LowRank, float]]) -> LowRank:
    """sum_k n_k D_k / sum_k n_k as stacked factors, exactly; the weight goes on B once.

    Reads the items once: the weights need not sum to one. Raises ValueError when there are none.
    """
    rows, columns, weights = [], [], []
    for d, n in items:
        rows.append(d.A)
        columns.append(d.B)
        weights.append(n)
    total = sum(weights)
    if not total > 0:
        raise ValueError("expected at least one pair of positive weight, got none")
    scaled = [(b.double() * (n / total)).to(b.dtype) for b, n in zip(columns, weights, strict=True)]
    return LowRank(torch.cat(rows), torch.cat(scaled, dim=1))


def mean_factors(items: Iterable[tuple[LowRank, float]]) -> LowRank:
    """(sum p_k A_k, sum p_k B_k): the pair FedIT averages to. Reads the items once, one in memory at a time.

    Raises ValueError for unlike ranks, or where there is nothing of positive weight.
    """
    ranks = set[int]()

    def factors() -> Iterator[tuple[Tensors, float]]:
        for d, n in items:
            ranks.add(d.rank)
            if len(ranks) > 1:
                raise ValueError(f"expected one rank for all pairs, got {sorted(ranks)}")
            yield {"A": d.A, "B": d.B}, n

    mean = weighted_mean(factors())
    return LowRank(mean["A"], mean["B"])


def plus(x: LowRank | Tensor, y: LowRank | Tensor) -> LowRank | Tensor:
    """The sum of two changes of one weight: factored where both are, else dense [o, i]."""
    if isinstance(x, LowRank) and isinstance(y, LowRank):
        return x + y
    return (x.dense() if isinstance(x, LowRank) else x) + (y.dense() if isinstance(y, LowRank) else y)


def inner(x: LowRank, y: LowRank) -> float:
    """<x, y> = tr(x^T y) = tr((B_x^T B_y)(A_y A_x^T)) from small Gram matrices, float64."""
    a, b = x.double(), y.double()
    return float(torch.sum((a.B.T @ b.B) * (a.A @ b.A.T)))


def cut(tensors: Tensors, rank: int | Callable[[str], int]) -> dict[str, Tensor]:
    """The first `rank` rows of every A and columns of every B (by module, if it is a function); the rest as it is."""
    of = (lambda module: rank) if isinstance(rank, int) else rank
    rows = {n: x[: of(n.removesuffix(A_SUFFIX))] if n.endswith(A_SUFFIX) else x for n, x in tensors.items()}
    return {n: x[:, : of(n.removesuffix(B_SUFFIX))] if n.endswith(B_SUFFIX) else x for n, x in rows.items()}


def pad(d: LowRank, rank: int) -> LowRank:
    """The same matrix with zero rows of A and zero columns of B up to `rank`; `cut` undoes it."""
    extra = max(0, rank - d.rank)
    return LowRank(torch.nn.functional.pad(d.A, (0, 0, 0, extra)), torch.nn.functional.pad(d.B, (0, extra)))


def padded(items: Iterable[tuple[LowRank, float]]) -> list[tuple[LowRank, float]]:
    """The same changes and weights, all padded with zeros to the largest rank among them."""
    listed = list(items)
    largest = max((d.rank for d, _ in listed), default=0)
    return [(pad(d, largest), n) for d, n in listed]


def onto(new: LowRank, old: LowRank) -> LowRank:
    """`new` with rows that can all learn: those it lacks are `old`'s, and where both its factors are zero, A is.

    A row of A that is zero together with its column of B has no gradient in either: d/dB = G A^T, d/dA = B^T G. With
    the column zero the row may be anything: the product of the ranks that `new` has stays what it is.
    """
    held = new.rank
    dead = ~new.A.any(dim=1) & ~new.B.any(dim=0)
    fill = torch.zeros_like(new.A)
    fill[: old.rank] = old.A[:held]
    a = torch.where(dead[:, None], fill, new.A)
    return LowRank(torch.cat([a, old.A[held:]]), torch.cat([new.B, old.B[:, held:]], dim=1))


def gathered(
    items: Iterable[tuple[Tensors, float]],
) -> tuple[dict[str, list[tuple[LowRank, float]]], dict[str, Tensor]]:
    """(the pairs of all clients with their weights by module, the weighted mean of everything that is not a pair).

    Reads the items once. Raises ValueError when there are none of positive weight.
    """
    pairs: dict[str, list[tuple[LowRank, float]]] = {}
    rest: list[tuple[Tensors, float]] = []
    for tensors, weight in items:
        of_client, other = split(tensors)
        for m, d in of_client.items():
            pairs.setdefault(m, []).append((d, weight))
        rest.append((other, weight))
    return pairs, weighted_mean(rest)


def replaced(old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """`old` with the values of `new`, pairs of which may be of smaller rank: see `onto`."""
    before, (pairs, rest) = split(old)[0], split(new)
    return {**old, **named({m: onto(d, before[m]) for m, d in pairs.items()}), **rest}


def split(tensors: Tensors) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """(pairs by module, everything else by name) of named tensors; a factor without its partner stays in the rest."""
    modules = sorted(n.removesuffix(A_SUFFIX) for n in tensors if n.endswith(A_SUFFIX))
    modules = [m for m in modules if m + B_SUFFIX in tensors]
    pairs = {m: LowRank(tensors[m + A_SUFFIX], tensors[m + B_SUFFIX]) for m in modules}
    paired = {m + suffix for m in modules for suffix in (A_SUFFIX, B_SUFFIX)}
    return pairs, {n: t for n, t in tensors.items() if n not in paired}


def named(pairs: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The inverse of `split`: `<module>.lora_A` and `<module>.lora_B`."""
    return {m + s: t for m, d in pairs.items() for s, t in ((A_SUFFIX, d.A), (B_SUFFIX, d.B))}
