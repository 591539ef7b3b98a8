"""Every built-in codec keeps the contract; and a suite that could not fail would prove nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedft.compression import codec_names
from fedft.compression.codec import Rounded, Rounding
from fedft.compression.codec_names import parse
from fedft.compression.plain import FP32, whole
from fedft.suites import promises
from fedft.suites.codecs import PROMISES, codec_contract

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
RUN = "0123456789abcdef"
NAMES = (
    *codec_names.PLAIN,
    "int4",
    "ternary",
    "ternary:0.2",
    "compeft:0.2,1",
    "compeft:1,0.5",
    "fixed:2",
    "fixed:16",
    "fixed:24:4",
    "topk:0.05|fp32",
    "randk:0.1|fp32",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_codec_keeps_the_contract(name: str) -> None:
    codec_contract(name)


def test_every_built_in_codec_is_under_contract() -> None:
    assert {parse(name).name.split("|")[-1].split(":")[0] for name in NAMES} == codec_names.MODULES.keys()


# The suite can fail


def _zero_becomes_one(x: np.ndarray) -> Rounded:
    return Rounded(np.where(x == 0, np.float32(1), x))


R = FP32.behind_selection
assert R is not None
BROKEN = {
    "what is decoded of what was encoded is what is seen": replace(FP32, seen=lambda name, x, seed: x.clone() + 1),
    "never longer than its size, exactly as long if plain": replace(FP32, size=lambda name, shape: 3),
    "arguments are not changed, and results own their memory": replace(FP32, seen=lambda name, x, seed: x.detach()),
    "same seed, same bytes": replace(FP32, pack=lambda name, x, seed: [np.random.bytes(4 * x.numel())]),
    "whatever the bytes, a tensor or ValueError": replace(
        FP32, unpack=lambda name, shape, data: torch.tensor(np.frombuffer(data, np.float32)[0]).expand(shape)
    ),
    "zero stays zero": whole(replace(R, round=_zero_becomes_one)),
    "what is not finite stays so": whole(replace(R, round=lambda x: Rounded(np.nan_to_num(x)))),
    "its bits per parameter are about right": replace(FP32, bits_per_parameter=20.0),
    "declared exact, it is": replace(parse("bf16"), exact=True),
    "declared linear, it is but for rounding": replace(parse("int4"), linear=True),
    "declared unbiased, the mean over seeds is what went in": replace(parse("topk:0.5|fp32"), unbiased=True),
    "declared idempotent, what was decoded makes the same bytes": replace(parse("int4"), idempotent=True),
    "declared ring summable, sums are on its scale": replace(parse("int8"), ring_summable=True),
    "its name finds it again": replace(FP32, name="bf16"),
}


@pytest.mark.parametrize("promise", BROKEN)
def test_a_codec_that_breaks_a_promise_is_found_out(promise: str) -> None:
    with pytest.raises(AssertionError, match=promise):
        promises.kept({promise: PROMISES[promise]}, BROKEN[promise], "broken", stop=True)


def test_a_rounding_without_zero_does_not_stand_alone() -> None:
    with pytest.raises(ValueError, match="has no zero"):
        whole(Rounding("x", 1.0, *([R.size, R.round, R.floats, R.pack, R.unpack]), has_zero=False))
