"""Changes of a weight matrix kept as factors: D = B A, never multiplied out unless it is merged.

    B: [o, R], A: [R, i]; with D_k = B_k A_k and weights p_k

    stack     B = [p_1 B_1 ... p_n B_n], A = [A_1; ...; A_n]           sum_k p_k D_k, exactly      (FLoRA, eq. 3)
    mean      (sum_k p_k B_k, sum_k p_k A_k)     FedIT's; it lacks sum_k p_k (B_k - B)(A_k - A)    (FedEx-LoRA)
    svd(r)    best approximation of rank r (Eckart-Young) from the two tall factors               (`product_svd`)

Pairs are in unit-scale form: B carries alpha / r. Algebra runs in float64 and is rounded once to the factors' dtype.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.arithmetic import product_svd
from fedft.arithmetic.tensors import Tensors, weighted_mean


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
        gb, ga = product_svd.gram(b.T), product_svd.gram(a)
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
        it out of the minimum. Signs are fixed, so equal factors give equal output. Cost O((o + i) R^2 + R^3).
        """
        return product_svd.svd(self.B, self.A, rank)

    def truncate(self, rank: int | None = None, share_of_a: float = 0.5) -> "LowRank":
        """The best approximation of B A of rank at most `rank`, in the factors' dtype; with None, B A itself.

        Singular values below 2^-24 of the largest are dropped in any case: float32 factors cannot hold them. Ranks come
        in descending order of the singular values S; A carries S^share_of_a and B the rest. With 0.5 neither factor is
        badly scaled; with 0, A has orthonormal rows.
        """
        u, s, v = self.svd(rank)
        kept = int((s > s[0] * 2**-24).sum()) if s.numel() else 0
        u, s, v = u[:, :kept], s[:kept], v[:kept]
        a, b = s[:, None] ** share_of_a * v, u * s ** (1 - share_of_a)
        return LowRank(a.to(self.A.dtype), b.to(self.A.dtype).contiguous())

    def ranks(self, start: int = 0, stop: int | None = None) -> "LowRank":
        """The part of B A that ranks `start` to `stop` - 1 make: these rows of A and columns of B, as views."""
        return LowRank(self.A[start:stop], self.B[:, start:stop])

    def shortened(self) -> "LowRank":
        """The same matrix with R <= min(o, i): these factors where that holds already, else `truncate()` of them."""
        return self if self.rank <= min(self.shape) else self.truncate()


def zero(o: int, i: int) -> LowRank:
    """The zero matrix of shape [o, i] with factors of rank 0, float32."""
    return LowRank(torch.zeros(0, i), torch.zeros(o, 0))


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


def inner(x: LowRank, y: LowRank) -> float:
    """The inner product of two matrices of one shape: tr(x^T y) = tr((B_x^T B_y)(A_y A_x^T)), in float64.

    Only matrices of the ranks' size are made on the way.
    """
    a, b = x.double(), y.double()
    return float(torch.sum((a.B.T @ b.B) * (a.A @ b.A.T)))


def pad(d: LowRank, rank: int) -> LowRank:
    """The same matrix as `d` with zero rows added to A and zero columns to B up to `rank`.

    A pair whose rank is at least `rank` comes back as it is. `cut` undoes the padding.
    """
    extra = max(0, rank - d.rank)
    return LowRank(torch.nn.functional.pad(d.A, (0, 0, 0, extra)), torch.nn.functional.pad(d.B, (0, extra)))


def pad_to_largest(items: Iterable[tuple[LowRank, float]]) -> list[tuple[LowRank, float]]:
    """The matrices of `items` padded with zeros to the largest rank among them (`pad`), with their weights."""
    listed = list(items)
    largest = max((d.rank for d, _ in listed), default=0)
    return [(pad(d, largest), n) for d, n in listed]


def padded_to(new: LowRank, old: LowRank) -> LowRank:
    """Pad `new` to `old`'s rank with `old`'s rows; ranks whose A and B are both zero get `old`'s row of A, or they
    would have no gradient (d/dB = G A^T, d/dA = B^T G). The product over the ranks of `new` is unchanged.

    >>> new = LowRank(A=torch.tensor([[1.0, 1.0], [0.0, 0.0]]), B=torch.tensor([[2.0, 0.0]]))
    >>> old = LowRank(A=torch.tensor([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]]), B=torch.zeros(1, 3))
    >>> padded_to(new, old).A.tolist()  # kept, filled because the rank was dead, appended
    [[1.0, 1.0], [6.0, 6.0], [7.0, 7.0]]
    """
    held = new.rank
    dead = ~new.A.any(dim=1) & ~new.B.any(dim=0)
    fill = torch.zeros_like(new.A)
    fill[: old.rank] = old.A[:held]
    appended = old.ranks(held)
    return LowRank(
        torch.cat([torch.where(dead[:, None], fill, new.A), appended.A]), torch.cat([new.B, appended.B], dim=1)
    )
