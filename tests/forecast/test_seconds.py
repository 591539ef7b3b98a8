"""Operations of a pass against torch's own counter, and what rounds take of them."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.forecast.activations import Learning, Pass
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.seconds import Device, pass_flops, round_seconds
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.update import Shape
from tests.support.small_models import SEED, base_of, bert, gpt2, llama

ROWS, TOKENS, RANK = 2, 16, 4


def counted_and_foreseen(name: str, targets: Any, layers: str | None, backward: bool) -> tuple[float, float]:
    """(operations that torch counts in a pass, those that are foreseen)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = {"llama": llama, "gpt2": gpt2, "bert": bert}[name]()
    model.set_attn_implementation("eager")  # torch counts nothing in its own kernel for CPUs
    base, full = base_of(model, "sequence-classification" if name == "bert" else "causal-lm"), targets is None
    layout = layout_of(base, [] if full else targets, layers=layers)
    handle = ModelHandle(model, layout, Full() if full else LoRA())
    handle.write(handle.kind.initial(handle.layout, Shape(0 if full else RANK), 0))
    ids = torch.randint(1, 20, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1]) if name == "bert" else ids
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        loss = handle.loss({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        if backward:
            loss.backward()
    ranks = {} if full else dict.fromkeys(layout.modules, RANK)
    adapters = sum(RANK * (o + i) for o, i in layout.modules.values()) if not full else 0
    given = Pass(ROWS, TOKENS, ROWS * (TOKENS - 1), masked=False)
    return counter.get_total_flops(), pass_flops(
        anatomy_of(base), Learning(ranks, full), given, adapters, backward=backward
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    ("targets", "layers"), [("all-linear", None), ("all-linear", "1"), (None, None)], ids=["lora", "upper half", "full"]
)
def test_operations_are_those_that_torch_counts(name: str, targets: Any, layers: str | None) -> None:
    for backward in (True, False):
        counted, foreseen = counted_and_foreseen(name, targets, layers, backward)
        assert foreseen == pytest.approx(counted, rel=0.12), backward


def test_a_round_is_steps_and_links_and_nothing_where_no_speed_is_known() -> None:
    device = Device(flops=1e9, overhead=0.01, up=1e3, down=1e4)
    assert device.seconds(2e9, 10, 500, 1000) == pytest.approx(2 + 0.1 + 0.5 + 0.1)
    assert Device(flops=1e9).seconds(2e9, 10, 500, 1000) == 2
    assert Device(up=5.0).seconds(2e9, 10, 500, 1000) is None


def test_the_slowest_that_is_needed_sets_the_pace() -> None:
    assert round_seconds({"a": 3.0, "b": 9.0, "c": 4.0}, 3) == (9.0, "b")
    assert round_seconds({"a": 3.0, "b": 9.0, "c": 4.0}, 1) == (3.0, "a")
