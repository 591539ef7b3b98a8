"""Server optimisers on one tensor: against torch, and what the two ways of applying them remember."""

import pytest
import torch

from fedft.aggregation.server_optimizers import AdamW, FactoredMomentum, FedOpt, GradientDescent, on_each, on_vector
from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.contract import State

ADAM = FedOpt("adam", 0.1, 0.9, 0.99, 1e-3)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def steps(optimizer, x: torch.Tensor, rounds: int = 4) -> torch.Tensor:
    memory: dict[str, torch.Tensor] = {}
    for version in range(rounds):
        x, memory = optimizer.step(x, drawn(version, *x.shape), memory, version)
    return x


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_adamw_and_gradient_descent_are_torch_s(decay):
    for ours, theirs in (
        (AdamW(0.1, 0.8, 0.9, decay), lambda x: torch.optim.AdamW([x], lr=0.1, betas=(0.8, 0.9), weight_decay=decay)),
        (GradientDescent(0.1, decay), lambda x: torch.optim.SGD([x], lr=0.1, weight_decay=decay)),
    ):
        x = torch.nn.Parameter(drawn(9, 5).double())
        optimizer = theirs(x)
        for version in range(4):
            x.grad = -drawn(version, 5).double()
            optimizer.step()
        assert torch.allclose(steps(ours, drawn(9, 5)).double(), x.detach(), rtol=1e-5, atol=1e-6)


def test_tensor_by_tensor_and_as_one_vector_are_the_same_steps():
    """What no client sent keeps its x, m and v; a vector longer than all tensors together counts as far as they go."""
    state = State(0, {"a": drawn(1, 2, 3), "b": drawn(2, 4)})
    changes = [{"a": drawn(3, 2, 3), "b": drawn(4, 4)}, {"a": drawn(5, 2, 3), "b": drawn(6, 4)}]
    each, vector = on_each(AdamW(0.1, 0.9, 0.99, 0.1), "me"), on_vector(AdamW(0.1, 0.9, 0.99, 0.1), "me")
    one = other = state
    for version, change in enumerate(changes, 1):
        made = each(one, change)
        one = State(version, made.tensors, made.own)
        made = vector(other, {"mean": torch.cat([tensors.flat(change), torch.ones(3)])})
        other = State(version, made.tensors, made.own)
    assert tensors.digest(one.tensors) == tensors.digest(other.tensors)
    assert one.own["me"].keys() == {"m.a", "v.a", "m.b", "v.b"}
    assert other.own["me"].keys() == {"m", "v"}
    still = each(one, {"a": changes[0]["a"]})
    assert still.tensors["b"] is one.tensors["b"]
    assert still.own["me"]["v.b"] is one.own["me"]["v.b"]


def test_nothing_is_changed_in_place():
    x, delta = drawn(1, 3), drawn(2, 3)
    _, memory = ADAM.step(x, delta, {}, 0)
    kept = [t.clone() for t in (x, delta, memory["m"], memory["v"])]
    ADAM.step(x, delta, memory, 1)
    assert all(torch.equal(a, b) for a, b in zip(kept, (x, delta, memory["m"], memory["v"]), strict=True))


@pytest.mark.parametrize("options", [{"server_lr": 0.0}, {"tau": 0.0}, {"beta1": 1.0}, {"beta2": -0.1}], ids=str)
def test_nonsense_is_refused(options):
    given = {"server_lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, **options}
    with pytest.raises(ValueError, match=next(iter(options))):
        FedOpt("adam", **given)


def test_momentum_of_factored_changes_is_that_of_the_dense_ones():
    optimizer = FactoredMomentum(0.5, 0.9)
    old, wanted = (LowRank(drawn(k, 2, 5), drawn(k + 1, 4, 2)) for k in (1, 3))
    dense_m, memory = torch.zeros(4, 5, dtype=torch.float64), None
    for _ in range(3):
        dense_m = 0.9 * dense_m + wanted.double().dense() - old.double().dense()
        dense = old.double().dense() + 0.5 * dense_m
        old, memory = optimizer.step(old, wanted, memory)
        assert memory.rank <= 4
        assert torch.allclose(old.double().dense(), dense, atol=1e-5)
    assert FactoredMomentum(1.0, 0.0).step(old, wanted, None) == (wanted, None)
    assert FactoredMomentum(0.5, 0.0).step(old, wanted, None)[1] is None


@pytest.mark.parametrize("options", [{"server_lr": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}], ids=str)
def test_nonsense_of_factored_momentum_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        FactoredMomentum(**{"server_lr": 1.0, "momentum": 0.5, **options})
