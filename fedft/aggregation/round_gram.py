"""Inner products of the changes that a round's clients made to the model, whatever form they sent them in.

    D_k = (B + dB_k)(A + dA_k) - B A = dB_k A + (B + dB_k) dA_k         of every pair; a head and the like as it is
    H   = <D_i, D_j>                                                    where products alone reach the state, or one
                                                                        factor stands still
    H   = <D_i, D_j> / median |D|^2 + <u_i, u_j> / median |u|^2         u = (dA, dB): where both factors are averaged

A mean of factors takes in what no product shows: B_k tiny and A_k huge have a product of honest size, and the mean of
all B times that A has not. So a client there must be near the others in both. Scales of the two are made alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedft.aggregation import gram
from fedft.aggregation.beginnings import Beginnings
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.arithmetic.tensors import Tensors, floats
from fedft.recipe import Recipe, product_norm
from fedft.update import Plan, Update


@dataclass
class RoundGram:
    """H of one round: updates are read from memory or disk, tensor by tensor, and none is modified."""

    begun: Beginnings
    """Where the clients began."""
    updates: Sequence[Update]
    plans: Sequence[Plan]
    """Of the same clients, without tensors."""

    def find(self) -> Tensor:
        """H: float64 [clients, clients]."""
        recipe = self._recipe
        if recipe.upload_kind == "numbers":  # only their lengths are compared
            norms = [recipe.norm(u.delta, p) for u, p in zip(self.updates, self.plans, strict=True)]
            return torch.tensor(norms, dtype=torch.float64).square().diag()
        if not self.begun.of_pairs():
            names = sorted({n for u in self.updates for n in floats(u.delta)})
            return self._plain(names)
        head = self._plain(sorted(self.begun.layout.head))
        modules = self.begun.layout.modules
        products = sum((gram.of_pairs([partial(self._pair, k, m) for k in self._all]) for m in modules), head)
        if not self._averages_factors:
            return products
        return _alike(products) + _alike(self._plain([m + s for m in modules for s in (A_SUFFIX, B_SUFFIX)]) + head)

    @property
    def _recipe(self) -> Recipe:
        return self.begun.recipe

    @property
    def _all(self) -> range:
        return range(len(self.updates))

    @property
    def _averages_factors(self) -> bool:
        """Whether both factors of pairs are sent, and reach the state as such."""
        sent = self._recipe.spec(self.begun.layout, self.plans[0])
        both = any(m + A_SUFFIX in sent and m + B_SUFFIX in sent for m in self.begun.layout.modules)
        return both and self._recipe.norm is not product_norm

    @cached_property
    def _begun_at(self) -> list[Mapping[str, Tensor]]:
        """Values that each client's adapter began at."""
        if not self.begun.of_pairs():
            return [{} for _ in self.plans]
        return [self.begun.of(p.shape).values for p in self.plans]

    def _change(self, k: int, name: str) -> Tensor | None:
        """What client k changed of a tensor, float64; None where it sent none."""
        sent: Tensors = self.updates[k].delta
        if name not in sent:
            return None
        x = sent[name].double()
        if self._recipe.upload_kind == "values" and (begun := self._begun_at[k].get(name)) is not None:
            return x - begun.double()
        return x

    def _pair(self, k: int, module: str) -> LowRank | None:
        """The change of client k of a module's weight, as factors; None for none."""
        begun, (a, b) = self._begun_at[k], (module + A_SUFFIX, module + B_SUFFIX)
        of_a, of_b = self._change(k, a), self._change(k, b)
        if a not in begun or (of_a is None and of_b is None):
            return None
        first, second = begun[a].double(), begun[b].double()
        if of_a is None or of_b is None:
            return LowRank(first, of_b) if of_b is not None else LowRank(of_a, second)  # type: ignore[arg-type]
        return LowRank(torch.cat([first, of_a]), torch.cat([of_b, second + of_b], dim=1))

    def _plain(self, names: Sequence[str]) -> Tensor:
        """The part of H that these tensors make, each taken as a vector; of unlike ranks the missing ones are zero."""
        found = torch.zeros(len(self.updates), len(self.updates), dtype=torch.float64)
        for name in names:
            shapes = [tuple(u.delta[name].shape) for u in self.updates if name in u.delta]
            if shapes:
                largest = tuple(map(max, zip(*shapes, strict=True)))
                found += gram.of_tensors([partial(self._padded, k, name, largest) for k in self._all])
        return found

    def _padded(self, k: int, name: str, shape: Sequence[int]) -> Tensor:
        if (x := self._change(k, name)) is None:
            return torch.zeros(*shape)
        return pad(x, [n for d in reversed(range(x.ndim)) for n in (0, shape[d] - x.shape[d])])


def _alike(H: Tensor) -> Tensor:
    """H in units of the median squared norm; as it is where that is zero."""
    middle = float(H.diagonal().quantile(0.5))
    return H / middle if middle > 0 else H
