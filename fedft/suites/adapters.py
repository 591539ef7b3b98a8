"""The contract of a kind of adapter (`fedft.contract.Kind`), on a model small enough to check in a second.

from fedft.suites.adapters import adapter_contract
def test_mine(): adapter_contract(Mine())
"""

from typing import Any

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import Kind, Layout
from fedft.models.handle import ModelHandle
from fedft.randomness import philox
from fedft.randomness.families import make
from fedft.suites.promises import kept
from fedft.suites.toy import ToyModel
from fedft.update import Shape, Update
from fedft.wire import messages

SEED = 11
LAYOUT = Layout(
    modules={"first": (6, 8), "second": (4, 6)},
    parameters={"first.bias": (6,), "first.weight": (6, 8), "second.weight": (4, 6)},
)


def _shape(kind: Kind) -> Shape:
    return Shape() if kind.rank_free else Shape(2)


def _mounted(kind: Kind) -> ModelHandle:
    """The kind in a fresh toy model, at version 0."""
    handle = ModelHandle(ToyModel(), LAYOUT, kind)
    handle.write(kind.initial(handle.layout, _shape(kind), SEED))
    return handle


def _x() -> Tensor:
    return 2 * philox.uniform(SEED, philox.LORA_INIT, "suite", (16, 8)) - 1


def _outputs(handle: ModelHandle) -> Tensor:
    with torch.no_grad():
        return handle.forward({"x": _x()}).logits.clone()


def _of_the_base() -> Tensor:
    with torch.no_grad():
        found: Tensor = ToyModel()(_x()).logits
        return found


def _moved(kind: Kind, handle: ModelHandle, by: int = 0) -> dict[str, Tensor]:
    """Values away from version 0, of the size of a round."""
    start = kind.start(handle.layout, _shape(kind), SEED)
    return {
        n: x + 0.1 * (philox.uniform(SEED + by, philox.LORA_INIT, f"moved.{n}", tuple(x.shape)) - 0.5)
        for n, x in start.items()
    }


def _same_seed_same_values(kind: Kind) -> None:
    layout, shape = kind.layout(LAYOUT), _shape(kind)
    a, b = kind.initial(layout, shape, SEED), kind.initial(layout, shape, SEED)
    assert tensors.digest(a) == tensors.digest(b), "version 0 differs"


def _version_0_has_what_is_trained(kind: Kind) -> None:
    layout, shape = kind.layout(LAYOUT), _shape(kind)
    wanted = {n: s.shape for n, s in kind.spec(layout, shape).items()}
    found = {n: tuple(x.shape) for n, x in kind.start(layout, shape, SEED).items()}
    assert found == wanted, f"version 0 has {found}, what is trained is {wanted}"
    frozen = kind.frozen(layout, shape, SEED).keys() & wanted.keys()
    assert not frozen, f"{sorted(frozen)} are frozen and trained"


def _names_say_whose_they_are(kind: Kind) -> None:
    layout, shape = kind.layout(LAYOUT), _shape(kind)
    owners = tuple(f"{m}." for m in LAYOUT.modules)
    strange = [n for n in kind.trained(layout, shape) if not n.startswith(owners)]
    assert kind.of_base or not strange, f"{strange} are no <module>.<part>"


def _exactly_what_is_trained_asks_for_gradients(kind: Kind) -> None:
    handle = _mounted(kind)
    live = handle.parameters()
    assert live.keys() == kind.spec(handle.layout, _shape(kind)).keys(), f"live are {sorted(live)}"
    asking = {id(p) for p in handle.model.parameters() if p.requires_grad}
    assert asking <= {id(p) for p in live.values()}, "something else in the model asks for gradients"
    assert all(p.requires_grad for p in live.values()), "something that is trained does not"


def _what_is_written_is_read(kind: Kind) -> None:
    handle = _mounted(kind)
    values = _moved(kind, handle)
    handle.write(values)
    read = handle.read()
    assert read.keys() == values.keys(), f"read {sorted(read)}"
    for n, x in values.items():
        assert torch.allclose(read[n], x, rtol=1e-6, atol=1e-7), f"{n} reads as something else"
    handle.write(read)
    assert tensors.digest(handle.read()) == tensors.digest(read), "writing what was read changes it"


def _version_0_leaves_the_function_as_it_is(kind: Kind) -> None:
    apart = float((_outputs(_mounted(kind)) - _of_the_base()).abs().max())
    assert apart <= 1e-4, f"outputs at version 0 differ from the base's by {apart:g}"


def _every_trained_tensor_is_felt(kind: Kind) -> None:
    """By gradients and by perturbed passes alike, from a point where nothing is zero."""
    handle = _mounted(kind)
    handle.write(_moved(kind, handle))
    batch = {"x": _x(), "labels": _x()[:, :4]}
    handle.loss(batch).backward()
    here = _outputs(handle)
    z = make("hadamard", SEED, 4)
    for n, p in handle.parameters().items():
        assert p.grad is not None, f"{n} has no gradient"
        assert bool(p.grad.any()), f"the gradient of {n} is zero"
        with handle.perturbed(z, 1, 0.5, only=[n]):
            assert not torch.equal(_outputs(handle), here), (
                f"passes do not see {n} moved: is it the module's parameter?"
            )
    assert torch.equal(_outputs(handle), here), "a perturbed pass left a trace"


def _off_is_the_base(kind: Kind) -> None:
    if kind.of_base:
        return
    handle = _mounted(kind)
    base = _of_the_base()
    handle.write(_moved(kind, handle))
    on = _outputs(handle)
    with handle.without_adapter():
        off = _outputs(handle)
    assert torch.allclose(off, base, atol=1e-6), "switched off it still does something"
    assert torch.equal(_outputs(handle), on), "switched on again it does something else"


def _its_change_of_a_weight_is_what_it_does(kind: Kind) -> None:
    handle = _mounted(kind)
    handle.write(_moved(kind, handle))
    wanted = _outputs(handle)
    changes, _ = handle.change()
    if kind.of_base or not changes:
        return
    merged = ToyModel()
    with torch.no_grad():
        for m, d in changes.items():
            weight: Any = merged.get_submodule(m).weight
            weight.add_(d.dense() if isinstance(d, LowRank) else d)
        assert torch.allclose(merged(_x()).logits, wanted, atol=1e-5), "the base plus its change is another function"


def _linear_means_linear(kind: Kind) -> None:
    if not kind.linear or kind.of_base:
        return
    handle = _mounted(kind)
    values = [_moved(kind, handle, by=k) for k in range(3)]
    frozen = kind.frozen(handle.layout, _shape(kind), SEED)
    mean = {n: torch.stack([v[n] for v in values]).mean(0) for n in values[0]}
    for m in handle.layout.modules:
        of_mean, each = _dense(kind, m, mean | frozen), [_dense(kind, m, v | frozen) for v in values]
        if of_mean is None:
            raise AssertionError("declared linear, but it has no change of a weight")
        wanted = torch.stack([x for x in each if x is not None]).mean(0)
        apart = float((of_mean - wanted).norm() / wanted.norm().clamp(min=1e-12))
        assert apart <= 1e-4, f"the change of the mean is {apart:g} from the mean of the changes"


def _dense(kind: Kind, module: str, values: dict[str, Tensor]) -> Tensor | None:
    d = kind.change(module, values)
    return d.dense() if isinstance(d, LowRank) else d


def _values_survive_the_wire(kind: Kind) -> None:
    layout, shape = kind.layout(LAYOUT), _shape(kind)
    delta = kind.start(layout, shape, SEED)
    data = messages.encode_update(Update(delta, 1), "fp32")
    got = messages.decode_update(data, kind.spec(layout, shape), "fp32")
    assert tensors.digest(got.delta) == tensors.digest(delta), "fp32 is not exact on the wire"


def _shapes_do_not_disturb_each_other(kind: Kind) -> None:
    if kind.rank_free:
        return
    handle = _mounted(kind)
    mine = _moved(kind, handle)
    handle.write(mine)
    before = _outputs(handle)
    mixed = Shape(1, {"second": 3})
    handle.write(kind.initial(handle.layout, mixed, SEED))
    found = {n: tuple(p.shape) for n, p in handle.parameters().items()}
    wanted = {n: s.shape for n, s in kind.spec(handle.layout, mixed).items()}
    assert found == wanted, f"ranks by module: {found}, wanted {wanted}"
    handle.write(mine)
    assert torch.allclose(_outputs(handle), before, atol=1e-6), "another shape in between changes what this one does"


PROMISES = {
    "same seed, same values": _same_seed_same_values,
    "version 0 has exactly what is trained": _version_0_has_what_is_trained,
    "names say whose tensors they are": _names_say_whose_they_are,
    "exactly what is trained asks for gradients": _exactly_what_is_trained_asks_for_gradients,
    "what is written is read": _what_is_written_is_read,
    "version 0 leaves the function as it is": _version_0_leaves_the_function_as_it_is,
    "every trained tensor is felt, by gradients and by perturbed passes": _every_trained_tensor_is_felt,
    "switched off it is the base": _off_is_the_base,
    "its change of a weight is what it does": _its_change_of_a_weight_is_what_it_does,
    "declared linear, the change of a mean is the mean of changes": _linear_means_linear,
    "values survive the wire": _values_survive_the_wire,
    "adapters of unlike shapes do not disturb each other": _shapes_do_not_disturb_each_other,
}


def adapter_contract(kind: Kind, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `kind`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, kind, kind.name, stop=stop)
