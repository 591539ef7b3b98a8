"""A step along several shared directions at once, seen as one direction."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedft.randomness.directions import Directions
from fedft.randomness.hadamard import Hadamard

ONE_BY_ONE = 12  # a hadamard transform of all directions takes as long as adding so many of them (measured)


@dataclass(frozen=True)
class DirectionSum:
    """sum_j c_j z_j with coefficients of its own for every tensor, as one direction that `Handle.perturbed` can add."""

    z: Directions
    coefficients: Mapping[str, Mapping[int, float]]
    """{tensor: {j: c_j}}; a tensor that is not named has none."""

    def add_(self, out: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out += alpha sum_j c_j z_j for the tensor `name`, from its entry `start` on; `index` is not looked at."""
        found = {j: alpha * c for j, c in self.coefficients.get(name, {}).items() if c}
        if len(found) > ONE_BY_ONE and isinstance(getattr(self.z, "inner", self.z), Hadamard):
            coefficients = torch.zeros(self.z.count, dtype=torch.float64)
            for j, c in found.items():
                coefficients[j] = c
            self.z.axpy_(out, name, coefficients, start=start)
        else:
            for j, c in found.items():
                self.z.add_(out, name, j, c, start=start)

    def add_into(self, out: Tensor, x: Tensor, name: str, index: int, alpha: float, *, start: int = 0) -> None:
        """out = x + alpha sum_j c_j z_j; see `add_`."""
        out.copy_(x)
        self.add_(out, name, index, alpha, start=start)
