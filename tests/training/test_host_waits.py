"""How often a local step makes the host wait for the device, and that flags on the device leave the same steps out."""

import traceback
from collections import Counter
from typing import Any

import pytest
import torch
from client_turns import PLAIN, UNLIKE, alone, batch_of, gpt2, handle_on, llama, poisoned, shared, start, turn_of
from torch.utils._python_dispatch import TorchDispatchMode

from fedft.arithmetic import tensors
from fedft.contract import Course, Learning, Turn
from fedft.testing import Ready
from fedft.training import optimizer_state, optimizers
from fedft.training.first_order import FirstOrder

STEPS = 5


class Reads(TorchDispatchMode):
    """Counts numbers that our code reads out of tensors: on a device it would wait for each.

    Transformers itself looks once or twice into the mask, or the positions, of every pass.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if name != "_local_scalar_dense" or not any("masking_utils" in f.filename for f in traceback.extract_stack()):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def reads(self) -> int:
        return self.found["_local_scalar_dense"]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimisers as on a CUDA device: their fused kernels run on the CPU as well."""
    monkeypatch.setattr(optimizers, "_on_cuda", lambda trained: True)


def batches(steps: int = STEPS) -> list[Any]:
    """Without a mask: transformers looks into each mask that it is given."""
    return [{k: x for k, x in batch_of(i, 2, 9).items() if k != "attention_mask"} for i in range(steps)]


def reads(local: FirstOrder = PLAIN, **table: Any) -> int:
    """During a turn of five steps."""
    handle, turn = handle_on(llama()), turn_of(1, steps=STEPS, **table)
    start(handle, turn)
    with Reads() as counted:
        found = local(handle, Ready(*[batch_of(i) for i in range(STEPS)]), turn)
    assert found.metrics["steps"] == STEPS
    assert counted.found["_foreach_copy_"], "nothing was counted"
    return counted.reads


@pytest.mark.parametrize(
    "table", [{}, {"optimizer": "sgd"}, {"max_grad_norm": None}], ids=["adamw", "sgd", "unclipped"]
)
def test_a_turn_waits_for_the_device_once_at_its_end(table: Any, fused: None) -> None:
    """Reading the list of losses: on the CPU, where this test runs, that is no operation of its own."""
    assert reads(**table) <= 1


def test_an_optimiser_without_such_a_kernel_waits_once_a_step() -> None:
    assert reads(optimizer="sgd", momentum=0.9) == STEPS
    assert reads(optimizer="rmsprop") == STEPS


def test_a_term_waits_once_more_a_step(fused: None) -> None:
    class Nothing:
        def begin(self, learning: Learning, turn: Turn) -> Course:
            return Course()

    assert reads(FirstOrder(terms=(Nothing(),))) == STEPS
    assert reads(FirstOrder(terms=(Nothing(), Nothing()))) == STEPS


@pytest.mark.parametrize("table", [{"weight_decay": 0.1}, {"optimizer": "sgd"}], ids=["adamw", "sgd"])
@pytest.mark.parametrize("bad", [(), (0,), (0, 3), (4,)], ids=str)
def test_a_flag_on_the_device_leaves_out_what_the_host_would(
    table: Any, bad: Any, fused: None, monkeypatch: Any
) -> None:
    """The same kernels, asked by the host: bit for bit, moments and counts of steps among what goes on."""
    handle, turn = handle_on(gpt2()), turn_of(2, steps=STEPS, keep_optimizer=True, **table)
    found = []
    for by_flag in (True, False):
        if not by_flag:
            monkeypatch.setattr(
                "fedft.training.first_order.step_if", lambda optimizer, fine: optimizer.step() if fine else None
            )
        start(handle, turn)
        found.append(FirstOrder()(handle, Ready(*poisoned([batch_of(i) for i in range(STEPS)], *bad)), turn))
    flagged, asked = found
    assert tensors.digest(flagged.delta) == tensors.digest(asked.delta)
    assert flagged.metrics == asked.metrics
    assert flagged.metrics["steps"] == STEPS - len(bad)
    kept, wanted = (x.kept[optimizer_state.OWNER] for x in (flagged, asked))
    assert kept.keys() == wanted.keys()
    assert all(torch.equal(kept[n], wanted[n]) for n in kept)


def test_a_turn_whose_every_loss_is_no_number_ends_as_before(fused: None) -> None:
    handle, turn = handle_on(llama()), turn_of(2, steps=3)
    start(handle, turn)
    before = tensors.digest(handle.read())
    with pytest.raises(FloatingPointError, match="every local step had a non-finite loss"):
        FirstOrder()(handle, Ready(*poisoned([batch_of(i) for i in range(3)], 0, 1, 2)), turn)
    assert tensors.digest(handle.read()) == before


def test_a_momentum_whose_first_step_is_left_out_is_not_made_up(fused: None) -> None:
    handle, turn = handle_on(llama()), turn_of(2, steps=3, optimizer="sgd", momentum=0.9)
    work = [(turn, poisoned([batch_of(i) for i in range(3)], 0))]
    (found,) = alone(handle, work, FirstOrder())
    rest = turn_of(2, steps=2, optimizer="sgd", momentum=0.9)
    (wanted,) = alone(handle, [(rest, [batch_of(i) for i in range(1, 3)])], FirstOrder())
    assert tensors.digest(found.delta) == tensors.digest(wanted.delta)


def test_a_shared_step_waits_once_for_all_clients(fused: None) -> None:
    """The first pass of a run compares a loss, which is two more."""
    handle = handle_on(llama())
    with Reads() as counted:
        shared(handle, UNLIKE)
    assert counted.found["_foreach_copy_"], "nothing was counted"
    assert counted.reads == 2
