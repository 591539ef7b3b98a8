"""What of a model is left after pruning: one bit for each of its groups. Pruned groups never return."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedft.pruning.groups import Groups


@dataclass(frozen=True, eq=False)
class Kept:
    """The groups of a model that are kept; two are equal if they keep the same ones."""

    groups: Groups
    bits: Tensor
    """bool [groups] on the CPU, in the order of `groups`; not to be modified."""

    def places(self, module: str, within: "Kept | None" = None) -> Tensor:
        """Which rows or columns of the module's weight are kept, int64, ascending.

        `within`: what the weight has been cut to, which keeps as much or more; None: nothing was cut.
        """
        return (~self.lost(module, within)).nonzero().flatten()

    def lost(self, module: str, within: "Kept | None" = None) -> Tensor:
        """Whether each row or column of the module's weight is pruned, bool; `within` as of `places`."""
        part, place = self.groups.parts[module]
        lost = ~part.kept(self.bits[place])
        return lost if within is None else lost[within.places(module)]

    @property
    def ratio(self) -> float:
        """The share of the weights in all groups that is pruned, 0 to 1.

        Of weights, not of groups: a head has as many as thousands of channels.
        """
        return int(self.groups.weights[~self.bits].sum()) / int(self.groups.weights.sum())

    def counts(self) -> dict[str, int]:
        """How many groups each structure keeps, by its name."""
        return {s.name: int(self.bits[place].sum()) for s, place in self.groups.each()}

    def __and__(self, other: "Kept") -> "Kept":
        """What both keep."""
        return Kept(self.groups, self.bits & other.bits)

    def __le__(self, other: "Kept") -> bool:
        """Whether the other keeps all that this one keeps."""
        return bool((self.bits <= other.bits).all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kept) and self.groups == other.groups and torch.equal(self.bits, other.bits)

    def __hash__(self) -> int:
        return hash(self.packed())

    def packed(self) -> bytes:
        """The bits, eight to a byte, the first in the highest bit; the last byte is filled up with zeros."""
        return np.packbits(self.bits.numpy()).tobytes()

    def words(self) -> Tensor:
        """The bytes of `packed` two by two as a tensor, uint16 [ceil(groups / 16)], the first byte in the high half."""
        data = self.packed()
        return torch.from_numpy(np.frombuffer(data + b"\0" * (len(data) % 2), ">u2").astype(np.uint16))


def everything(groups: Groups) -> Kept:
    """Nothing pruned."""
    return Kept(groups, torch.ones(groups.size, dtype=torch.bool))


def from_words(groups: Groups, words: Tensor) -> Kept:
    """What `Kept.words` gave, whoever sent it: groups without a bit are pruned, bits without a group not looked at."""
    bits = torch.zeros(groups.size, dtype=torch.bool)
    said = np.unpackbits(np.frombuffer(words.numpy().astype(">u2").tobytes(), np.uint8))[: groups.size]
    bits[: len(said)] = torch.from_numpy(said.astype(bool))
    return Kept(groups, bits)
