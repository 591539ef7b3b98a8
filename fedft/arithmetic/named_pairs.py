"""Low-rank pairs among named tensors: `<module>.lora_A` and `<module>.lora_B` are the factors of one matrix."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from fedft.arithmetic.lowrank import LowRank, padded_to
from fedft.arithmetic.tensors import Tensors, weighted_mean

A_SUFFIX, B_SUFFIX = ".lora_A", ".lora_B"


def split(tensors: Tensors) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
    """Named tensors parted in two: low-rank pairs by module, and everything else by name.

    A factor without its partner is among everything else.
    """
    modules = sorted(n.removesuffix(A_SUFFIX) for n in tensors if n.endswith(A_SUFFIX))
    modules = [m for m in modules if m + B_SUFFIX in tensors]
    pairs = {m: LowRank(tensors[m + A_SUFFIX], tensors[m + B_SUFFIX]) for m in modules}
    paired = {m + suffix for m in modules for suffix in (A_SUFFIX, B_SUFFIX)}
    return pairs, {n: t for n, t in tensors.items() if n not in paired}


def to_names(pairs: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The factors of `pairs` (by module) as named tensors: undoes `split`."""
    return {m + s: t for m, d in pairs.items() for s, t in ((A_SUFFIX, d.A), (B_SUFFIX, d.B))}


def pairs_and_mean(
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


def replace_pairs(old: Tensors, new: Tensors) -> dict[str, Tensor]:
    """The tensors of `old` with those of `new` in their place; a pair of smaller rank is padded (`padded_to`)."""
    before, (pairs, rest) = split(old)[0], split(new)
    return {**old, **to_names({m: padded_to(d, before[m]) for m, d in pairs.items()}), **rest}


def cut(tensors: Tensors, rank: int | Callable[[str], int]) -> dict[str, Tensor]:
    """Named tensors with the first `rank` rows of every A and columns of every B, none where that is 0; all others as
    they are.

    Args:
        tensors: named tensors.
        rank: one for all modules, or a function from a module's name to its rank.
    """
    of = (lambda module: rank) if isinstance(rank, int) else rank
    found = {}
    for name, x in tensors.items():
        if not name.endswith((A_SUFFIX, B_SUFFIX)):
            found[name] = x
        elif r := of(name.removesuffix(A_SUFFIX).removesuffix(B_SUFFIX)):
            found[name] = x[:r] if name.endswith(A_SUFFIX) else x[:, :r]
    return found
