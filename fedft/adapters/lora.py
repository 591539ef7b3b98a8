"""Low-rank adapters."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX
from fedft.contract import Layout
from fedft.randomness import philox
from fedft.update import TensorSpec


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters on chosen modules: change of a weight = lora_B lora_A.

    `trained` names the factors that learn and travel. With A frozen it is drawn from the run's seed on every machine
    and never sent: two seeds of 8 bytes agree where gigabytes would have travelled.
    """

    trained: tuple[str, ...] = (A_SUFFIX, B_SUFFIX)
    kind: Literal["lora"] = "lora"

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """A uniform on +-1/sqrt(in) (peft's Kaiming bound), one Philox word per element; B zero; head changes zero."""
        found = {name: torch.zeros(shape) for name, shape in layout.head.items()}
        for m, (o, i) in layout.modules.items():
            u = philox.uniform(seed, philox.LORA_INIT, m + A_SUFFIX, (rank, i))
            found[m + A_SUFFIX] = (2 * u - 1) / i**0.5
            found[m + B_SUFFIX] = torch.zeros(o, rank)
        return found

    def spec(self, layout: Layout, rank: int) -> dict[str, TensorSpec]:
        """The trained factors at `rank`, and the head."""
        shapes = {m + A_SUFFIX: (rank, i) for m, (_, i) in layout.modules.items()}
        shapes |= {m + B_SUFFIX: (o, rank) for m, (o, _) in layout.modules.items()}
        found = {n: TensorSpec(s) for n, s in shapes.items() if n.endswith(self.trained)}
        return found | {n: TensorSpec(s) for n, s in layout.head.items()}
