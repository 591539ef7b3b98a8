"""Tensors that are left in their message: the same numbers, norms and refusals as those that are read at once."""

import copy
import math

import pytest
import torch
from torch import Tensor

from fedft.aggregation.mean import mean
from fedft.arithmetic import tensors
from fedft.errors import RejectedUpdate
from fedft.update import Spec, TensorSpec, Update
from fedft.wire import messages
from fedft.wire.body import LARGE, InMessage

ROWS = 3 * LARGE // 8  # of two numbers each: more than LARGE, and more than a block of the norm


def change(seed: int = 0) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn((ROWS, 2), generator=g),
        "b.none": torch.empty(0, 4),
        "c.seeds": torch.arange(5, dtype=torch.int32),
        "d.weight": 1e-3 * torch.randn(77, generator=g),
    }


def spec_of(delta: dict[str, Tensor]) -> Spec:
    return {n: TensorSpec(tuple(x.shape), str(x.dtype).removeprefix("torch.")) for n, x in delta.items()}


def read(delta: dict[str, Tensor], *, apart: bool, codec: str = "fp32", client: str = "x" * 7) -> Update:
    """As it comes out; the length of `client`, a metric's name, decides where in memory the numbers lie."""
    data = messages.encode_update(Update(delta, 3, metrics={client: 1.0}), codec)
    return messages.decode_update(data, spec_of(delta), codec, apart=apart)


@pytest.mark.parametrize("client", ["x", "xx", "xxx", "xxxx"])
def test_the_numbers_are_those_that_are_read_at_once(client: str) -> None:
    """Wherever they begin in the message."""
    sent = change()
    once, left = read(sent, apart=False, client=client).delta, read(sent, apart=True, client=client).delta
    assert isinstance(left, InMessage)
    assert not isinstance(once, InMessage)
    assert list(left) == list(once)
    assert len(left) == len(once)
    assert "a.weight" in left
    assert "z" not in left
    for name, x in once.items():
        assert tensors.same_bits(left[name], x), name
        assert left[name].is_contiguous()
        assert left[name].data_ptr() % 16 == 0
    assert tensors.norm(tensors.floats(left)) == tensors.norm(tensors.floats(once))
    assert list(tensors.floats(left)) == list(tensors.floats(once))
    assert tensors.nbytes(left) == tensors.nbytes(once) == sum(x.nbytes for x in sent.values())
    assert tensors.digest(left) == tensors.digest(once)


def test_each_look_is_a_tensor_of_its_own() -> None:
    left = read(change(), apart=True).delta
    left["a.weight"].zero_()
    assert tensors.same_bits(left["a.weight"], change()["a.weight"])


def test_the_mean_is_the_same() -> None:
    """Name by name: numbers are summed in the order of the updates, as ever."""
    found = []
    for apart in (False, True):
        updates = [read({n: x for n, x in change(k).items() if n != "c.seeds"}, apart=apart) for k in range(3)]
        found.append(mean(updates))
    assert tensors.digest(found[0]) == tensors.digest(found[1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.1e4, -3e38])
@pytest.mark.parametrize("name", ["a.weight", "d.weight"])
def test_the_same_numbers_are_refused(value: float, name: str) -> None:
    bad = change()
    bad[name].view(-1)[-1] = value
    codes = []
    for apart in (False, True):
        with pytest.raises(RejectedUpdate) as e:
            read(bad, apart=apart)
        codes.append((e.value.code, str(e.value)))
    assert codes[0] == codes[1]


def test_numbers_up_to_the_bound_are_let_through() -> None:
    """Whose squares add up to more than its square."""
    good = change()
    good["a.weight"].view(-1)[:3] = 1e4
    assert float(read(good, apart=True).delta["a.weight"].max()) == 1e4


@pytest.mark.parametrize("cut", [1, 4, LARGE])
def test_a_body_of_another_length_is_refused(cut: int) -> None:
    sent = change()
    data = messages.encode_update(Update(sent, 3), "fp32")
    for wrong in (data[:-cut], data + bytes(cut)):
        with pytest.raises(RejectedUpdate, match=r"malformed|message of"):
            messages.decode_update(wrong, spec_of(sent), "fp32", apart=True)


def test_what_is_short_or_takes_work_to_read_is_read_at_once() -> None:
    short = {"d.weight": torch.ones(LARGE // 4 - 1)}
    assert not isinstance(read(short, apart=True).delta, InMessage)
    halves = {"a.weight": torch.ones(ROWS, 2)}
    assert not isinstance(read(halves, apart=True, codec="int8").delta, InMessage)


def test_a_copy_holds_the_tensors() -> None:
    """As another process would get them."""
    left = read(change(), apart=True).delta
    whole = copy.deepcopy(left)
    assert not isinstance(whole, InMessage)
    assert tensors.digest(whole) == tensors.digest(left)
    assert tensors.norm(whole) == tensors.norm(left)
