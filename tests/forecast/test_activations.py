"""What a pass keeps, foreseen and counted: the formulas against torch's own hooks."""

from typing import Any

import pytest
import torch

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.forecast.activations import Learning, Pass, kept, logits, lowest
from fedft.forecast.anatomy import Anatomy, anatomy_of
from fedft.models import checkpointing
from fedft.models.free_memory import kept_bytes
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.update import Shape
from tests.support.small_models import SEED, base_of, bert, gpt2, llama

ROWS, TOKENS, RANK = 3, 16, 4


def counted_and_foreseen(
    name: str, targets: Any = "all-linear", layers: str | None = None, full: bool = False, **how: Any
) -> tuple[int, int]:
    """(bytes that a pass keeps, those that are foreseen)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = {"llama": llama, "gpt2": gpt2, "bert": bert}[name]()
    base = base_of(model, "sequence-classification" if name == "bert" else "causal-lm")
    dtype = how.pop("dtype", torch.float32)
    model.to(dtype)
    layout = layout_of(base, [] if full else targets, layers=layers)
    handle = ModelHandle(model, layout, Full() if full else LoRA(), dropout=how.get("dropout", 0.0))
    handle.write(handle.kind.initial(handle.layout, Shape(0 if full else RANK), 0))
    if how.get("checkpointing"):
        checkpointing.switch_on(model, "small")
    ids = torch.randint(1, 20, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    padded = how.pop("masked", False)
    mask[0, -2:] = 1 - int(padded)
    labels = torch.tensor([0, 1, 2]) if name == "bert" else ids
    learning = Learning({} if full else dict.fromkeys(layout.modules, RANK), full)
    given = Pass(ROWS, TOKENS, ROWS * (TOKENS - 1), padded, dtype.itemsize, **how)
    of = anatomy_of(base)
    found = kept_bytes(handle, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found, sum(kept(of, learning, given)[0]) + logits(of, given)[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize(
    "how",
    [{}, {"masked": True}, {"full": True}, {"layers": "1"}, {"checkpointing": True}],
    ids=str,
)
def test_what_a_pass_keeps_is_foreseen(name: str, how: dict[str, Any]) -> None:
    """Within a tenth even of models whose layers are so small that what is kept once for all of them counts."""
    counted, foreseen = counted_and_foreseen(name, **how)
    assert foreseen == pytest.approx(counted, rel=0.12)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["o_proj"], ["down_proj"], ["gate_proj", "up_proj"]])
def test_what_is_adapted_decides_what_is_kept(targets: list[str]) -> None:
    counted, foreseen = counted_and_foreseen("llama", targets=targets)
    assert foreseen == pytest.approx(counted, rel=0.06)


def test_half_precision_keeps_a_copy_for_each_adapted_layer() -> None:
    counted, foreseen = counted_and_foreseen("llama", dtype=torch.bfloat16)
    assert foreseen == pytest.approx(counted, rel=0.05)


def test_dropout_before_adapters_keeps_more() -> None:
    counted, foreseen = counted_and_foreseen("llama", dropout=0.1)
    assert foreseen == pytest.approx(counted, rel=0.08)
    assert foreseen > 1.2 * counted_and_foreseen("llama")[1]


def test_where_a_is_frozen_inputs_are_not_kept() -> None:
    found = []
    for learns in ((".lora_A", ".lora_B"), (".lora_B",)):
        base = base_of(llama())
        handle = ModelHandle(base.model, layout_of(base, "all-linear"), LoRA(learns))
        handle.write(handle.kind.initial(handle.layout, Shape(RANK), 0))
        ids = torch.randint(1, 20, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        of, given = anatomy_of(base), Pass(ROWS, TOKENS, ROWS * (TOKENS - 1), masked=False)
        learning = Learning(dict.fromkeys(of.parts, RANK), inputs=len(learns) == 2)
        foreseen = sum(kept(of, learning, given)[0]) + logits(of, given)[0]
        assert foreseen == pytest.approx(kept_bytes(handle, batch), rel=0.06)
        found.append(foreseen)
    assert found[1] < 0.9 * found[0]


def of_small_llama() -> Anatomy:
    return anatomy_of(base_of(llama()))


def test_nothing_is_kept_below_the_lowest_module_that_learns() -> None:
    of, given = of_small_llama(), Pass(2, 8, 14)
    upper = Learning({"model.layers.1.mlp.down_proj": 4})
    assert lowest(of, upper) == (1, 3)
    assert lowest(of, Learning({})) is None
    assert kept(of, upper, given)[0][0] == 0
    assert not any(kept(of, Learning({}), given)[0])
    every = Learning(dict.fromkeys(of.parts, 4))
    assert 2.5 * sum(kept(of, upper, given)[0]) < sum(kept(of, every, given)[0])


def test_many_logits_are_kept_once_and_taken_in_pieces() -> None:
    of, few = of_small_llama(), Pass(1, 8, 8)
    assert logits(of, few) == (4 * 8 * 20, 2 * 4 * 8 * 20)
    many = Pass(1, 2**24, 2**24)
    whole, beside = logits(of, many)
    assert whole == 4 * 2**24 * 20
    assert whole + beside < 3 * whole
