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
    """The matrix B A of shape [o, i], kept as factors A: [R, i] and B: [o, R] of one dtype; R = 0 is the zero matrix.

    Raises ValueError if the factors are no matrices or do not have one R.

    >>> d = LowRank(A=torch.tensor([[1.0, 2.0, 3.0]]), B=torch.tensor([[1.0], [10.0]]))
    >>> d.shape, d.rank
    ((2, 3), 1)
    >>> d.dense().tolist()
    [[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]
    >>> nothing = d + -d  # factors side by side: what cancels does so in the product only
    >>> nothing.rank, nothing.dense().count_nonzero().item()
    (2, 0)
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(f"factors do not fit: A {tuple(self.A.shape)}, B {tuple(self.B.shape)}")

    @property
    def rank(self) -> int:
        """R, the number of rows of A and columns of B; the rank of the matrix B A is at most R."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(o, i): rows and columns of the matrix B A, outputs and inputs of the weight that it changes."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Tensor:
        """The matrix B A multiplied out: [o, i] in the factors' dtype. For merging and for tests."""
        return self.B @ self.A

    def norm(self) -> float:
        """The Frobenius norm of B A, computed in float64 from R x R matrices: |BA|^2 = tr((B^T B)(A A^T)).

        Where terms cancel, that trace has lost half its digits, and the norm is taken from the triangles of the two QR
        decompositions instead: |R_B R_A^T|.
        """
        b, a = self.B.double(), self.A.double()
        gb, ga = _gram(b.T), _gram(a)
        square = torch.sum(gb * ga)
        if square > 1e-6 * gb.norm() * ga.norm():
            return float(square.sqrt())
        rb, ra = torch.linalg.qr(b, mode="r")[1], torch.linalg.qr(a.T, mode="r")[1]
        return float((rb @ ra.T).norm())

    def __add__(self, other: "LowRank") -> "LowRank":
        """The sum of two matrices of one shape, exactly: their factors side by side, so that ranks add."""
        return LowRank(torch.cat([self.A, other.A]), torch.cat([self.B, other.B], dim=1))

    def __neg__(self) -> "LowRank":
        """-B A; the sign goes on B."""
        return LowRank(self.A, -self.B)

    def __rmul__(self, factor: float) -> "LowRank":
        """factor * B A; the factor is multiplied into B in float64 and rounded once to B's dtype."""
        return LowRank(self.A, (factor * self.B.double()).to(self.B.dtype))

    def __matmul__(self, x: Tensor) -> Tensor:
        """The product B (A x) with a tensor x of shape [i] or [i, n], in float64; B A is never multiplied out."""
        return self.B.double() @ (self.A.double() @ x.double())

    def double(self) -> "LowRank":
        """The same matrix with float64 factors."""
        return LowRank(self.A.double(), self.B.double())

    def svd(self, rank: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The singular value decomposition of B A: (U, S, V) with U: [o, q], S: [q] descending, V: [q, i], float64.

        U diag(S) V is the best approximation of B A of rank q = min(rank, R, o, i) (Eckart-Young); `rank` None leaves
        it out of the minimum. Signs are fixed (the largest entry of each column of U is positive), so equal factors
        give equal output. Cost O((o + i) R^2 + R^3).
        """
        u, s, v = self._svd_by_gram(rank) or self._svd_by_qr(rank)
        if s.numel():
            sign = torch.sign(u.gather(0, u.abs().argmax(0, keepdim=True))).squeeze(0)
            sign[sign == 0] = 1
            u, v = u * sign, v * sign[:, None]
        return u, s, v

    def _svd_by_qr(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """`svd` through QR of both factors; the orthonormal bases are applied to kept columns, never written out."""
        (hb, tb), (ha, ta) = torch.geqrf(self.B.double()), torch.geqrf(self.A.double().T)
        rb, ra = hb[: self.rank].triu(), ha[: self.rank].triu()
        u, s, v = torch.linalg.svd(rb @ ra.T, full_matrices=False)
        return _turned(hb, tb, u[:, :rank]), s[:rank], _turned(ha, ta, v[:rank].T).T

    def _svd_by_gram(self, rank: int | None) -> tuple[Tensor, Tensor, Tensor] | None:
        """`svd` through Gram matrices; None where these are not precise enough or the factors are not tall.

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
        """The best approximation of B A of rank at most `rank`, in the factors' dtype; with None, B A itself.

        Singular values below 2^-24 of the largest are dropped in any case: float32 factors cannot hold them. Each
        factor gets the square root of every singular value, so neither is badly scaled.
        """
        u, s, v = self.svd(rank)
        kept = int((s > s[0] * 2**-24).sum()) if s.numel() else 0
        root = s[:kept].sqrt()
        dtype = self.A.dtype
        return LowRank((root[:, None] * v[:kept]).to(dtype), (u[:, :kept] * root).to(dtype).contiguous())

    def shortened(self) -> "LowRank":
        """The same matrix with R <= min(o, i): these factors where that holds already, else `truncate()` of them."""
        return self if self.rank <= min(self.shape) else self.truncate()


def _gram(x: Tensor) -> Tensor:
    """x x^T, [R, R] of x: [R, d]; strips of the lower triangle, mirrored: a third less work than one product."""
    gram, strip = x.new_zeros(len(x), len(x)), max(64, -(-len(x) // 3))
    for first in range(0, len(x), strip):
        last = min(first + strip, len(x))
        torch.mm(x[first:last], x[:last].T, out=gram[first:last, :last])
    return gram.tril() + gram.tril(-1).T


def _turned(h: Tensor, tau: Tensor, x: Tensor) -> Tensor:
    """The product Q x with the orthonormal basis Q: [d, R] that `torch.geqrf` returned as (h, tau); x: [R, n]."""
    long = torch.nn.functional.pad(x, (0, 0, 0, len(h) - len(x)))
    return torch.ormqr(h[:, : len(tau)], tau, long)


def _half(gram: Tensor) -> Tensor:
    """A square root F of `gram`, F F^T = gram: its Cholesky factor, or from eigenvectors where `gram` is singular."""
    factor, failed = torch.linalg.cholesky_ex(gram)
    if not failed:
        return factor
    values, vectors = torch.linalg.eigh(gram)
    return vectors * values.clamp(min=0).sqrt()


def zero(o: int, i: int) -> LowRank:
    """The zero matrix of shape [o, i] with factors of rank 0, float32."""
    return LowRank(torch.zeros(0, i), torch.zeros(o, 0))


def stack(items: Iterable[tuple[LowRank, float]]) -> LowRank:
    """The weighted mean of matrices, sum_k n_k D_k / sum_k n_k, exactly, as stacked factors (FLoRA, eq. 3).

    Ranks add. A weight is multiplied into its B once, in float64, and rounded to B's dtype.

    Args:
        items: pairs (D_k, n_k) of one shape [o, i], read once; the weights need not sum to one.
    Raises:
        ValueError: there is no item, or the weights do not sum to more than zero.

    >>> one = LowRank(A=torch.ones(1, 2), B=torch.ones(2, 1))
    >>> mean = stack([(one, 3), (-one, 1)])
    >>> mean.rank, mean.dense().tolist()
    (2, [[0.5, 0.5], [0.5, 0.5]])
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
    """The pair of mean factors, (sum_k p_k A_k, sum_k p_k B_k) with p_k = n_k / sum n: FedIT's average.

    The product of means is not the mean of products: see the module's table for what it lacks.

    Args:
        items: pairs (D_k, n_k) of one shape and one rank, read once, one in memory at a time.
    Raises:
        ValueError: ranks or shapes differ, or no item has a positive weight.
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
    """The inner product of two matrices of one shape: tr(x^T y) = tr((B_x^T B_y)(A_y A_x^T)), in float64.

    Only matrices of the ranks' size are made on the way.
    """
    a, b = x.double(), y.double()
    return float(torch.sum((a.B.T @ b.B) * (a.A @ b.A.T)))


def cut(tensors: Tensors, rank: int | Callable[[str], int]) -> dict[str, Tensor]:
    """The first `rank` rows of every A and columns of every B (by module, if it is a function); the rest as it is."""
    of = (lambda module: rank) if isinstance(rank, int) else rank
    rows = {n: x[: of(n.removesuffix(A_SUFFIX))] if n.endswith(A_SUFFIX) else x for n, x in tensors.items()}
    return {n: x[:, : of(n.removesuffix(B_SUFFIX))] if n.endswith(B_SUFFIX) else x for n, x in rows.items()}


def pad(d: LowRank, rank: int) -> LowRank:
    """The same matrix as `d` with zero rows added to A and zero columns to B up to `rank`.

    A pair whose rank is at least `rank` comes back as it is. `cut` undoes the padding.
    """
    extra = max(0, rank - d.rank)
    return LowRank(torch.nn.functional.pad(d.A, (0, 0, 0, extra)), torch.nn.functional.pad(d.B, (0, extra)))


def padded(items: Iterable[tuple[LowRank, float]]) -> list[tuple[LowRank, float]]:
    """The matrices of `items` padded with zeros to the largest rank among them (`pad`), with their weights."""
    listed = list(items)
    largest = max((d.rank for d, _ in listed), default=0)
    return [(pad(d, largest), n) for d, n in listed]


def onto(new: LowRank, old: LowRank) -> LowRank:
    """`new` padded to the rank of `old` with rows of A and columns of B from `old`, so that every rank can learn.

    A row of A that is zero together with its column of B would have no gradient: d/dB = G A^T, d/dA = B^T G. In such a
    rank of `new`, A gets `old`'s row; its column of B stays zero, so the product over the ranks of `new` is unchanged.

    >>> new = LowRank(A=torch.tensor([[1.0, 1.0], [0.0, 0.0]]), B=torch.tensor([[2.0, 0.0]]))
    >>> old = LowRank(A=torch.tensor([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]]), B=torch.zeros(1, 3))
    >>> onto(new, old).A.tolist()  # kept, filled because the rank was dead, appended
    [[1.0, 1.0], [6.0, 6.0], [7.0, 7.0]]
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
    """All clients' low-rank pairs with their weights, by module, and the weighted mean of all other tensors.

    Args:
        items: (a client's named tensors, its weight), read once.
    Raises:
        ValueError: no item has a positive weight, or the other tensors differ in names or shapes.
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
    """The tensors of `old` with those of `new` in their place; a pair of smaller rank is padded, see `onto`."""
    before, (pairs, rest) = split(old)[0], split(new)
    return {**old, **named({m: onto(d, before[m]) for m, d in pairs.items()}), **rest}


def split(tensors: Tensors) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Named tensors parted in two: low-rank pairs by module, and everything else by name.

    `<module>.lora_A` and `<module>.lora_B` are a pair; a factor without its partner is among everything else.
    """
    modules = sorted(n.removesuffix(A_SUFFIX) for n in tensors if n.endswith(A_SUFFIX))
    modules = [m for m in modules if m + B_SUFFIX in tensors]
    pairs = {m: LowRank(tensors[m + A_SUFFIX], tensors[m + B_SUFFIX]) for m in modules}
    paired = {m + suffix for m in modules for suffix in (A_SUFFIX, B_SUFFIX)}
    return pairs, {n: t for n, t in tensors.items() if n not in paired}


def named(pairs: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors of `pairs` (by module) as named tensors `<module>.lora_A` and `<module>.lora_B`: undoes `split`."""
    return {m + s: t for m, d in pairs.items() for s, t in ((A_SUFFIX, d.A), (B_SUFFIX, d.B))}
