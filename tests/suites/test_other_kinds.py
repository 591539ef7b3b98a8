"""Kinds of adapter that this package does not have, said in a few lines each: the contract has room for them.

IA3 and LoRA-XS are in tests/plugin_example; here are VeRA's vectors, scales of quantisation groups, and virtual tokens,
whose tensor changes no weight.
"""

import pytest
import torch
from torch import nn

from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Kind, Mounted
from fedft.randomness import philox
from fedft.suites.adapters import PROMISES
from fedft.update import Shape


class Hooked(Kind):
    """Parameters of adapted layers, and a forward hook for each layer that makes something of them."""

    def change_output(self, layer, x, y, values):
        """The layer's output under these values by part."""
        raise NotImplementedError

    def mount(self, model, layout, shape, settings):
        """Every tensor becomes a parameter of its layer, under a name of its shape's own."""
        on, found, hooks = [True], {}, []
        sizes = {**self.trained(layout, shape), **{n: x.shape for n, x in self.frozen(layout, shape, 0).items()}}
        for m in {n.rpartition(".")[0] for n in sizes}:
            layer, parts = (
                model.get_submodule(m),
                {n.rpartition(".")[2]: s for n, s in sizes.items() if n.startswith(m)},
            )
            for part, size in parts.items():
                layer.register_parameter(f"{part}_{shape.key}", nn.Parameter(torch.zeros(tuple(size))))
                found[f"{m}.{part}"] = layer.get_parameter(f"{part}_{shape.key}")

            def hook(layer, x, y, m=m, parts=tuple(parts)):
                return self.change_output(layer, x[0], y, {p: found[f"{m}.{p}"] for p in parts}) if on[0] else y

            hooks.append(layer.register_forward_hook(hook))
        return Mounted(found, lambda wanted: on.__setitem__(0, wanted), remove=lambda: [h.remove() for h in hooks])


class VeRA(Hooked):
    """y += b * B (d * A x): d [rank] and b [out] learn, A and B are frozen and drawn (Kopiczko et al., ICLR 2024)."""

    name, rank_free = "vera", False

    def trained(self, layout, shape):
        sizes = {m + ".d": (shape.of(m),) for m in layout.modules}
        return sizes | {m + ".b": (o,) for m, (o, _) in layout.modules.items()}

    def draw(self, layout, shape, seed):
        return {n: torch.full(s, 0.0 if n.endswith(".b") else 0.1) for n, s in self.trained(layout, shape).items()}

    def frozen(self, layout, shape, seed):
        sizes = {m + ".VA": (shape.of(m), i) for m, (_, i) in layout.modules.items()}
        sizes |= {m + ".VB": (o, shape.of(m)) for m, (o, _) in layout.modules.items()}
        return {n: 2 * philox.uniform(seed, philox.LORA_INIT, n, s) - 1 for n, s in sizes.items()}

    def shape_of(self, values):
        return Shape(0, {n[:-2]: len(x) for n, x in values.items() if n.endswith(".d")})

    def change(self, module, values):
        d, b, A, B = (values[f"{module}.{part}"] for part in ("d", "b", "VA", "VB"))
        return LowRank(d[:, None] * A, b[:, None] * B)

    def change_output(self, layer, x, y, values):
        return y + values["b"] * (values["d"] * (x @ values["VA"].T) @ values["VB"].T)


class GroupScales(Hooked):
    """W x becomes (s W) x, a scale for every group of two inputs of a row: tuning the scales of a packed base."""

    name = "group_scales"

    def trained(self, layout, shape):
        return {m + ".s": (o, i // 2) for m, (o, i) in layout.modules.items()}

    def draw(self, layout, shape, seed):
        return {n: torch.ones(s) for n, s in self.trained(layout, shape).items()}

    def change_output(self, layer, x, y, values):
        return y + x @ (layer.weight * (values["s"] - 1).repeat_interleave(2, dim=1)).T


class VirtualTokens(Hooked):
    """Something learned is added to the first layer's input: one tensor for the whole model, and no weight changes."""

    name = "virtual_tokens"

    def trained(self, layout, shape):
        first, (_, i) = next(iter(layout.modules.items()))
        return {f"{first}.tokens": (3, i)}

    def draw(self, layout, shape, seed):
        return {n: torch.zeros(s) for n, s in self.trained(layout, shape).items()}

    def change_output(self, layer, x, y, values):
        return y + values["tokens"].mean(0) @ layer.weight.T


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("kind", [VeRA(), GroupScales(), VirtualTokens()], ids=lambda kind: kind.name)
def test_another_kind_keeps_the_contract(kind, promise):
    PROMISES[promise](kind)
