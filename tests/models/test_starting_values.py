"""A turn's start without a copy of the weights: the values that `read` gave, and the memory of a turn in full space."""

from dataclasses import replace

import pytest
import torch
from small_models import factors, small

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.benchmarks.measure import Peak
from fedft.config import Local
from fedft.contract import Turn
from fedft.models.handle import ModelHandle
from fedft.models.starting_values import StartingValues
from fedft.testing import Ready
from fedft.training.first_order import FirstOrder
from fedft.update import Plan


def standing(dtype=torch.float32) -> tuple[ModelHandle, dict[str, torch.Tensor], dict]:
    """A model in full fine-tuning that stands at a change, and a batch."""
    s = small("llama", dtype)
    handle, rng = ModelHandle(s.model, s.layout, Full()), torch.Generator().manual_seed(1)
    handle.write({n: 0.1 * torch.randn(shape, generator=rng) for n, shape in s.layout.parameters.items()})
    return handle, handle.read(), s.batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_what_was_read_whatever_comes_behind(dtype):
    handle, read, _ = standing(dtype)
    start = handle.start()
    for p in handle.parameters().values():
        p.data.add_(1.0)
    assert list(start) == list(read)
    assert len(start) == len(read)
    assert all(torch.equal(start[n], x) for n, x in read.items())
    again = handle.start()  # from somewhere that no write has led to
    moved = handle.read()
    assert all(torch.equal(again[n], x) and not torch.equal(x, read[n]) for n, x in moved.items())


def test_a_parameter_that_was_moved_on_since_its_write_is_copied():
    handle, _, _ = standing()
    first = next(iter(handle.parameters().values()))
    first.data[..., 0] += 1.0
    read, start = handle.read(), handle.start()
    first.data[..., 0] += 1.0
    assert all(torch.equal(start[n], x) for n, x in read.items())


def test_factors_and_a_head_are_as_they_were():
    s = small("bert")
    handle = ModelHandle(s.model, s.layout, LoRA())
    handle.write(factors(s.layout, 2))
    read, start = handle.read(), handle.start()
    handle.write(factors(s.layout, 2, seed=9))
    assert all(torch.equal(start[n], x) for n, x in read.items())


def test_a_turn_of_all_parameters_holds_gradients_and_moments_and_no_copy_of_its_start():
    """Beside weights, w0 and what was received: AdamW's two moments and a gradient, then the change that is sent."""
    handle, _, batch = standing()
    weights = sum(p.nbytes for p in handle.parameters().values())
    plan = Plan("", 1, 1, steps=2, learning_rate=1e-3)
    turn = Turn(plan, {}, "", replace(Local(), steps=2), 0, 0)
    short = {n: x[:1, :2] for n, x in batch.items()}  # activations are small beside the weights
    data = Ready(short)
    FirstOrder()(handle, data, turn)
    handle.write({n: torch.zeros_like(x) for n, x in handle.read().items()})
    with Peak() as live:
        FirstOrder()(handle, data, turn)
    assert 2.9 * weights < live.most < 4.0 * weights


def test_values_may_be_given_as_functions():
    made = StartingValues({"a": torch.ones(1), "b": lambda: torch.zeros(2)})
    assert made["b"].tolist() == [0.0, 0.0]
    assert dict(made).keys() == {"a", "b"}
