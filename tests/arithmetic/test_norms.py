"""Norms of named tensors: in float64, the same bits whether the squares were added up before or not."""

import pytest
import torch

from fedft.arithmetic import norms, tensors
from fedft.arithmetic.norms import BLOCK, WithSquares
from fedft.errors import RejectedUpdate
from fedft.update import TensorSpec, Update
from fedft.wire import messages


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


NAMED = {"b": drawn(3, BLOCK // 2), "a": drawn(7, 5), "c": drawn(6, 4).T, "none": torch.empty(0, 4)}


def test_a_norm_is_the_root_of_the_dot_product_bit_for_bit():
    assert tensors.norm(NAMED) == tensors.dot(NAMED, NAMED) ** 0.5
    assert tensors.norm(NAMED) == pytest.approx(torch.cat([x.double().reshape(-1) for x in NAMED.values()]).norm())


def test_squares_that_were_added_up_before_make_the_same_norm():
    known = WithSquares(NAMED, {n: norms.squares(x) for n, x in NAMED.items()})
    assert tensors.norm(known) == tensors.norm(NAMED)
    assert tensors.norm(WithSquares(NAMED, {n: [1.0] for n in NAMED})) == len(NAMED) ** 0.5  # they are what is read


def test_integers_have_no_part_in_the_norm_of_what_came():
    named = NAMED | {"seeds": torch.tensor([3, 7], dtype=torch.int32)}
    spec = {n: TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for n, x in named.items()}
    came = messages.decode_update(messages.encode_update(Update(named, 1), "fp32"), spec, "fp32").delta
    assert isinstance(came, WithSquares)
    assert came.keys() == named.keys()
    assert tensors.norm(tensors.floats(came)) == tensors.norm(NAMED)


@pytest.mark.parametrize(
    ("value", "code"),
    [(1e4, None), (1.0001e4, "out_of_bounds"), (float("inf"), "nonfinite"), (float("nan"), "nonfinite")],
)
def test_what_came_is_within_bounds_whatever_its_norm(value, code):
    x = torch.full((4, 4), 9e3)  # a norm above the bound of an entry
    x[1, 2] = -value
    data = messages.encode_update(Update({"x": x}, 1), "fp32")
    spec = {"x": TensorSpec((4, 4), "float32")}
    if code is None:
        assert torch.equal(messages.decode_update(data, spec, "fp32").delta["x"], x)
        return
    with pytest.raises(RejectedUpdate) as refused:
        messages.decode_update(data, spec, "fp32")
    assert refused.value.code == code
