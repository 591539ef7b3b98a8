"""Triplets: what they add to a layer's output, on any layer; and that they leave no trace, and LoRA alone."""

import pytest
import torch
from torch import nn

from fedft.adapters.triplet import Triplet, TripletShape
from fedft.contract import Layout, Settings
from fedft.models.handle import ModelHandle
from fedft.models.packed_linear import PackedLinear
from fedft.strategies.parts.probed_pairs import ProbedPairs
from fedft.suites.adapters import LAYOUT
from fedft.testing import ToyModel
from fedft.update import Shape

ONE = Layout(modules={"m": (4, 64)})


def layer(kind: str) -> nn.Module:
    torch.manual_seed(1)
    plain = nn.Linear(64, 4, bias=False)
    if kind == "half":
        return plain.bfloat16()
    return PackedLinear(plain.weight.data, None, 4) if kind == "packed" else plain


@pytest.mark.parametrize("kind", ["float", "half", "packed"])
def test_a_layer_gives_what_it_gave_and_the_triplet_on_top_until_it_is_taken_out(kind):
    model, x = nn.ModuleDict({"m": layer(kind)}), torch.randn(3, 64)
    x = x.bfloat16() if kind == "half" else x
    before, names, buffers = model["m"](x), [*dict(model.named_parameters())], [*dict(model.named_buffers())]
    mounted = Triplet().mount(model, ONE, TripletShape(2), Settings())
    assert torch.equal(model["m"](x), before)  # all is zero as mounted
    values = {n: torch.randn(p.shape) for n, p in mounted.parameters.items()}
    for n, p in mounted.parameters.items():
        p.data.copy_(values[n])
    added = (x.float() @ values["m.Q"].T * values["m.lam"]) @ values["m.P"].T
    assert torch.allclose(model["m"](x), before + added.to(before.dtype))
    assert torch.allclose(Triplet().change("m", values).dense() @ x.float().T, added.T, atol=1e-4)
    mounted.switch(False)
    assert torch.equal(model["m"](x), before)
    mounted.switch(True)
    mounted.remove()
    assert torch.equal(model["m"](x), before)
    assert ([*dict(model.named_parameters())], [*dict(model.named_buffers())]) == (names, buffers)


def test_a_model_has_triplets_or_pairs_as_the_values_say():
    """And in whichever order they come, what one does does not depend on the other having been there."""
    kind, x = ProbedPairs(), {"x": torch.randn(5, 8)}
    probe, pairs = (
        {n: v + 0.1 for n, v in kind.initial(LAYOUT, shape, 7).items()} for shape in (TripletShape(2), Shape(2))
    )

    def outputs(*written):
        handle = ModelHandle(ToyModel(), LAYOUT, kind)
        for values in written:
            handle.write(values, ())
        with torch.no_grad():
            return handle.forward(x).logits, set(handle.parameters())

    alone = outputs(probe), outputs(pairs)
    assert not torch.equal(alone[0][0], alone[1][0])
    assert alone[0][1] == probe.keys()
    assert alone[1][1] == pairs.keys()
    for order, wanted in (((pairs, probe), alone[0]), ((probe, pairs), alone[1]), ((probe, pairs, probe), alone[0])):
        found = outputs(*order)
        assert torch.allclose(found[0], wanted[0], atol=1e-6)
        assert found[1] == wanted[1]


def test_shapes_of_triplets_and_of_pairs_have_unlike_keys():
    assert TripletShape(2).key != Shape(2).key
    assert Triplet().shape_of({"a.lam": torch.ones(2), "b.lam": torch.ones(2), "c.lam": torch.ones(3)}) == TripletShape(
        2, {"c": 3}
    )
    assert Triplet().shape_of({"a.lora_A": torch.ones(2, 3)}) is None
