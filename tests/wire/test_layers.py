"""The path of an update: messages, body, table, header, codec. Nothing below calls what is above."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch

from fedft.compression import codec_names
from fedft.update import TensorSpec, Update
from fedft.wire import messages, table

LAYERS = ("wire/messages", "wire/body", "wire/table", "wire/frame", "wire/header", "compression/")
DELTA = {
    "m.lora_A": torch.linspace(-1, 1, 200).reshape(4, 50),
    "m.lora_B": torch.linspace(-2, 1, 240).reshape(60, 4),
    "index": torch.arange(9, dtype=torch.int32).to(torch.uint16),
    "step": torch.arange(2, dtype=torch.int32),
}
SPEC = {name: TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for name, x in DELTA.items()}


def layer(frame: FrameType) -> int | None:
    """The place in LAYERS of the function that runs in a frame; None for code outside both rooms."""
    return next((i for i, part in enumerate(LAYERS) if f"fedft/{part}" in frame.f_code.co_filename), None)


def climbs(act: Callable[[], Any]) -> list[str]:
    """`caller -> callee` of each call in `act` from a lower layer to a higher one."""
    found = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_back is not None:
            above, here = layer(frame.f_back), layer(frame)
            if above is not None and here is not None and here < above:
                found.append(f"{frame.f_back.f_code.co_qualname} -> {frame.f_code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(before)
    return found


@pytest.mark.parametrize(
    "name", ["fp32", "bf16", "int8", "int4", "ternary", "fixed:8", "topk:0.25|int8", "randk:0.5|fp16"]
)
def test_an_update_goes_straight_down_to_its_codec_and_back(name: str) -> None:
    for cache in (codec_names._parsed, table.form):  # names are looked up, too
        cache.cache_clear()
    update = Update(DELTA, 3, metrics={"loss": 1.0})
    sent: list[bytes] = []
    assert climbs(lambda: sent.append(messages.encode_update(update, name))) == []
    assert climbs(lambda: messages.decode_update(sent[0], SPEC, name)) == []


def test_a_climb_is_seen() -> None:
    def down() -> None:
        exec(compile("up()", "fedft/compression/plain.py", "exec"), {"up": up})

    up = eval(compile("lambda: None", "fedft/wire/messages.py", "eval"))
    assert len(climbs(down)) == 1
