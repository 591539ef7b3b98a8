"""LoRA-XS: an r x r matrix that learns between two frozen factors, change of a weight = B R A.

Bałazy et al., "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters", 2024, arXiv:2405.17604, with
factors from the run's seed in place of singular vectors.
"""

import torch
from torch import nn

from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Kind, Mounted
from fedft.randomness import philox
from fedft.update import Shape


class LoRAXS(Kind):
    """R [rank, rank] learns; A [rank, in] and B [out, rank] are drawn and frozen."""

    name, linear, rank_free = "lora_xs", True, False

    def trained(self, layout, shape):
        """`<module>.R`."""
        return {m + ".R": (shape.of(m), shape.of(m)) for m in layout.modules}

    def draw(self, layout, shape, seed):
        """Zeros: the base as it is."""
        return {name: torch.zeros(size) for name, size in self.trained(layout, shape).items()}

    def frozen(self, layout, shape, seed):
        """Uniform factors of variance 1 / in and 1 / rank."""
        sizes = {m + ".XA": (shape.of(m), i) for m, (_, i) in layout.modules.items()}
        sizes |= {m + ".XB": (o, shape.of(m)) for m, (o, _) in layout.modules.items()}
        draws = {n: philox.uniform(seed, philox.LORA_INIT, n, size) for n, size in sizes.items()}
        return {n: (2 * u - 1) * (3 / u.shape[1]) ** 0.5 for n, u in draws.items()}

    def shape_of(self, values):
        """Rank by module, as R has it."""
        return Shape(0, {n[:-2]: len(x) for n, x in values.items() if n.endswith(".R")})

    def change(self, module, values):
        """B R A."""
        return LowRank(values[module + ".XA"], values[module + ".XB"] @ values[module + ".R"])

    def mount(self, model, layout, shape, settings):
        """y += B R A x in every adapted layer."""
        on, found, hooks = [True], {}, []
        for m, (o, i) in layout.modules.items():
            layer, r = model.get_submodule(m), shape.of(m)
            for part, size in (("R", (r, r)), ("XA", (r, i)), ("XB", (o, r))):
                layer.register_parameter(f"{part}_{shape.key}", nn.Parameter(layer.weight.new_zeros(size)))
                found[f"{m}.{part}"] = layer.get_parameter(f"{part}_{shape.key}")

            def added(layer, x, y, key=shape.key):
                R, A, B = (layer.get_parameter(f"{part}_{key}") for part in ("R", "XA", "XB"))
                return y + x[0] @ A.T @ R.T @ B.T if on[0] else y

            hooks.append(layer.register_forward_hook(added))
        return Mounted(found, lambda wanted: on.__setitem__(0, wanted), remove=lambda: [h.remove() for h in hooks])
