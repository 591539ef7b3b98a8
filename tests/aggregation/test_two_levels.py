"""What `RELAYS.md` says of sums of sums: when they are the bytes of one sum in roster order, and when not."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.wire import messages


def flat(xs: list[Tensor], weights: list[int]) -> Tensor:
    """The mean as the server takes it."""
    return tensors.weighted_mean(({"w": x}, n) for x, n in zip(xs, weights, strict=True))["w"]


def in_regions(xs: list[Tensor], weights: list[int], ends: list[int]) -> Tensor:
    """The mean of regions' float64 sums; a region ends before each of `ends`."""
    total = torch.zeros(xs[0].shape, dtype=torch.float64)
    for a, b in zip([0, *ends], [*ends, len(xs)], strict=True):
        region = torch.zeros(xs[0].shape, dtype=torch.float64)
        for x, n in zip(xs[a:b], weights[a:b], strict=True):
            region += x.double() * n
        total += region
    return (total / float(sum(weights))).float()


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_fixed_point_sums_are_the_same_bytes_however_sites_are_grouped(data: st.DataObject) -> None:
    bits, clip = data.draw(st.sampled_from([(4, 1), (16, 1), (24, 4)]))
    count = data.draw(st.integers(2, 9))
    weights = data.draw(st.lists(st.integers(1, 2**26 - 1), min_size=count, max_size=count))
    ends = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=count - 1)))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    spread = 10.0 ** -data.draw(st.integers(0, 4))
    sent = [torch.randn(500, generator=g) * spread for _ in weights]
    xs = [messages.roundtrip({"w": x}, f"fixed:{bits}:{clip}")["w"] for x in sent]
    assert torch.equal(in_regions(xs, weights, ends), flat(xs, weights))


def test_fp32_sums_may_differ_in_the_last_bit() -> None:
    """1 + 2^-53 + 2^-53: one after the other both small terms are rounded away, together they are not."""
    xs = [torch.tensor([x]) for x in (1.0, 2.0**-53, 2.0**-53, -1.0)]
    assert flat(xs, [1] * 4).item() == 0.0
    assert in_regions(xs, [1] * 4, [1, 3]).item() == 2.0**-54
