"""Arithmetic on named tensors: the weighted mean against a float64 loop, and what the digest sees."""

import itertools
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedft.arithmetic import tensors


def random_tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 4, generator=rng).to(dtype), "b": torch.randn(5, generator=rng).to(dtype)}


def test_add_sub_and_scale_work_name_by_name_and_leave_their_arguments():
    x, y = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([10.0, -4.0])}
    assert tensors.add(x, y)["w"].tolist() == [11.0, -2.0]
    assert tensors.sub(x, y)["w"].tolist() == [-9.0, 6.0]
    assert tensors.scale(x, -3.0)["w"].tolist() == [-3.0, -6.0]
    assert tensors.zeros_like(x)["w"].tolist() == [0.0, 0.0]
    assert (x["w"].tolist(), y["w"].tolist()) == ([1.0, 2.0], [10.0, -4.0])


def test_one_vector_of_all_entries_and_back():
    """Names in bytewise order, whatever the order of the mapping; what comes back is nobody else's memory."""
    x = {"b": torch.tensor([[3.0, 4.0]]), "B": torch.tensor(1.0), "a": torch.tensor([2.0])}
    vector = tensors.flat(x)
    assert vector.tolist() == [1.0, 2.0, 3.0, 4.0]
    back = tensors.shaped(vector, {n: t.shape for n, t in x.items()})
    assert tensors.digest(back) == tensors.digest(x)
    vector.zero_()
    assert tensors.digest(back) == tensors.digest(x)


@pytest.mark.parametrize("operation", [tensors.add, tensors.sub, tensors.dot])
def test_operations_on_unlike_names_are_refused(operation):
    with pytest.raises(ValueError, match="only_here"):
        operation({"w": torch.zeros(2), "only_here": torch.zeros(1)}, {"w": torch.zeros(2)})


def test_dot_and_norm_take_all_tensors_as_one_vector():
    """(1, 2 | 3) and (4, 5 | -6): 4 + 10 - 18 = -4; |(3, 4 | 12)| = 13."""
    x = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0]])}
    y = {"a": torch.tensor([4.0, 5.0]), "b": torch.tensor([[-6.0]])}
    assert tensors.dot(x, y) == -4.0
    assert tensors.norm({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([[12.0]])}) == 13.0


def test_the_norm_is_summed_in_float64():
    """1e4 terms of 1 beside one of 2^24: float32 would lose them all, 2^48 + 1e4 needs 49 bits."""
    x = {"a": torch.tensor([2.0**24]), "b": torch.ones(10_000)}
    assert tensors.dot(x, x) == 2.0**48 + 10_000


def test_weighted_mean_of_two_by_hand():
    """2 and -2 with weights 3 and 1: (3 * 2 + 1 * -2) / 4 = 1."""
    mean = tensors.weighted_mean([({"w": torch.tensor([2.0])}, 3), ({"w": torch.tensor([-2.0])}, 1)])
    assert mean["w"].tolist() == [1.0]


def test_weighted_mean_is_the_float64_mean_rounded_once():
    items = [(random_tensors(k), w) for k, w in enumerate((7, 1, 3, 250))]
    mean = tensors.weighted_mean(iter(items))
    for name in ("a", "b"):
        exact = sum((w / 261) * x[name].double() for x, w in items)
        assert mean[name].dtype == torch.float32
        # half a unit in the last place, and a little for the oracle's own rounding
        assert ((mean[name].double() - exact).abs() <= 2.0**-24 * exact.abs() * 1.001 + 1e-15).all()


def test_weighted_mean_is_the_same_in_any_order():
    items = [(random_tensors(k), w) for k, w in enumerate((5, 2, 11, 1))]
    first = tensors.weighted_mean(items)
    for other in itertools.permutations(items):
        again = tensors.weighted_mean(other)
        assert all(torch.allclose(first[n], again[n], rtol=2**-23, atol=0) for n in first)


def test_weighted_mean_depends_on_ratios_of_weights_only():
    items = [(random_tensors(k), w) for k, w in enumerate((5, 2, 11))]
    mean, scaled = tensors.weighted_mean(items), tensors.weighted_mean((x, w * 2.0**-30) for x, w in items)
    assert all(torch.equal(mean[n], scaled[n]) for n in mean)


def test_the_mean_of_equal_tensors_is_that_tensor():
    x = random_tensors(1)
    mean = tensors.weighted_mean((x, w) for w in (3, 5, 1))
    assert all(torch.equal(mean[n], x[n]) for n in x)


def test_a_small_term_beside_a_large_one_is_not_lost():
    """2^24, 1, -2^24 in float32 order give 0; the mean is 1/3."""
    values = (2.0**24, 1.0, -(2.0**24))
    mean = tensors.weighted_mean(({"w": torch.tensor([v])}, 1) for v in values)
    assert mean["w"].item() == pytest.approx(1 / 3, rel=1e-7)


def test_weighted_mean_keeps_the_dtype_of_the_first():
    items = [(random_tensors(k, torch.bfloat16), 1) for k in range(3)]
    assert {x.dtype for x in tensors.weighted_mean(items).values()} == {torch.bfloat16}


def test_weighted_mean_leaves_its_items_as_they_were():
    items = [(random_tensors(k), k + 1) for k in range(3)]
    before = [tensors.digest(x) for x, _ in items]
    tensors.weighted_mean(items)
    assert [tensors.digest(x) for x, _ in items] == before


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (300_001,)], ids=str)
@pytest.mark.parametrize("weights", [(3, 1, 250), (0.1, 0.7, 1 / 3), (1e-9, 2.0**40, 2**29 - 1)], ids=str)
def test_compiled_sums_give_the_bits_of_torch(shape, weights, monkeypatch):
    """Fractions too: weights have so few bits that no product is rounded, whether or not it is fused with the sum."""
    pytest.importorskip("numba")
    rng = torch.Generator().manual_seed(3)
    items = [({"w": torch.randn(shape, generator=rng), "h": torch.ones(2).bfloat16()}, w) for w in weights]
    found = []
    for kernels in ("torch", "numba"):
        monkeypatch.setenv("FEDFT_KERNELS", kernels)
        found.append(tensors.digest(tensors.weighted_mean(iter(items))))
    assert found[0] == found[1]


def test_compiled_sums_read_what_is_not_contiguous(monkeypatch):
    pytest.importorskip("numba")
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    x = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(tensors.weighted_mean([({"w": x.T}, 1), ({"w": 3 * x.T}, 1)])["w"], 2 * x.T)


@pytest.mark.parametrize("weight", [1, 16_777_217, 2**29 - 1, 0.75])
def test_numbers_of_examples_below_2_to_the_29_count_exactly(weight):
    """n and 1 examples of 1 and 0: n / (n + 1)."""
    mean = tensors.weighted_mean([({"w": torch.ones(1).double()}, weight), ({"w": torch.zeros(1).double()}, 1)])
    assert mean["w"].item() == weight / (weight + 1)


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that were made under it and are still there, and the most there ever were."""

    now = most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            there = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
            size = out.untyped_storage().nbytes()
            if out.untyped_storage().data_ptr() not in there and size:
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(out, self._gone, size)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_memory_does_not_grow_with_the_number_of_updates(kernels, monkeypatch):
    """One accumulator of 8 bytes an entry, one update of 4, one block, and the next update, which is made by then."""
    if kernels == "numba":
        pytest.importorskip("numba")
    monkeypatch.setenv("FEDFT_KERNELS", kernels)
    entries, most = 2**16, {}
    for count in (2, 64):
        with Live() as live:
            mean = tensors.weighted_mean(({"w": torch.full((4, entries), float(k))}, 1) for k in range(count))
        most[count] = live.most
        assert mean["w"][0, 0] == (count - 1) / 2
    assert most[2] == most[64] <= 4 * entries * (8 + 4 + 4 + 8)


@pytest.mark.parametrize("items", [[], [({"w": torch.ones(1)}, 0)]])
def test_a_mean_of_nothing_is_refused(items):
    with pytest.raises(ValueError, match="none"):
        tensors.weighted_mean(items)


@pytest.mark.parametrize("first", [{"w": torch.ones(1)}, {}], ids=["another name", "nothing"])
def test_a_mean_over_unlike_names_is_refused(first):
    with pytest.raises(ValueError, match="names differ"):
        tensors.weighted_mean([(first, 1), ({"v": torch.ones(1)}, 1)])


@pytest.mark.parametrize("shape", [(3, 1), (1, 3), (3,), (6,)])
def test_a_mean_over_unlike_shapes_is_refused_even_where_torch_would_broadcast(shape):
    with pytest.raises(ValueError, match="shape"):
        tensors.weighted_mean([({"w": torch.ones(3, 3)}, 1), ({"w": torch.ones(shape)}, 1)])


@pytest.mark.parametrize("operation", [tensors.add, tensors.sub])
def test_sums_of_unlike_shapes_are_refused_even_where_torch_would_broadcast(operation):
    with pytest.raises(ValueError, match="shape"):
        operation({"w": torch.ones(3, 3)}, {"w": torch.ones(1, 3)})


def test_the_digest_is_of_values_not_of_memory():
    x = torch.arange(12.0).reshape(3, 4)
    assert tensors.digest({"a": x, "b": x}) == tensors.digest({"b": x.clone(), "a": x.T.contiguous().T})


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.arange(4.0)},
        {"w": torch.arange(4.0).reshape(2, 2)},
        {"w": torch.arange(4.0).reshape(4, 1)},
        {"w": torch.arange(4.0).double()},
        {"w": torch.arange(4.0).view(torch.int32)},
        {"w": torch.tensor([-0.0, 1.0, 2.0, 3.0])},
        {"w": torch.arange(4.0), "more": torch.zeros(0)},
        {},
    ],
    ids=["name", "shape", "column", "dtype", "dtype of the same bytes", "sign of zero", "empty tensor", "nothing"],
)
def test_the_digest_sees(other):
    assert tensors.digest({"w": torch.arange(4.0)}) != tensors.digest(other)


def test_the_digest_sees_the_shape_of_an_empty_tensor():
    assert tensors.digest({"A": torch.zeros(0, 4)}) != tensors.digest({"A": torch.zeros(0, 5)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.uint16, torch.int32])
def test_every_dtype_and_a_scalar_can_be_digested(dtype):
    assert len(tensors.digest({"s": torch.ones((), dtype=dtype), "v": torch.ones(3, dtype=dtype)})) == 64


class Elsewhere(tensors.Apart):
    """Tensors that are made anew whenever they are asked for; `asked` has whose, and their names."""

    def __init__(self, x: dict[str, torch.Tensor], asked: list[tuple[int, str]]) -> None:
        self.x, self.asked = x, asked

    def __getitem__(self, name):
        self.asked.append((id(self), name))
        return self.x[name].clone()

    def __iter__(self):
        return iter(self.x)

    def __len__(self):
        return len(self.x)

    def __contains__(self, name):
        return name in self.x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_that_are_apart_have_the_same_mean_to_the_bit_and_are_read_once_name_by_name(dtype):
    every = [(random_tensors(seed, dtype), 1.0 + seed / 3) for seed in range(5)]
    every[0][0]["only"] = every[3][0]["only"] = torch.randn(4, generator=torch.Generator().manual_seed(9)).to(dtype)
    asked: list[tuple[int, str]] = []
    apart = [(Elsewhere(x, asked), weight) for x, weight in every]
    wanted = tensors.weighted_mean(every, by_name=True)
    found = tensors.weighted_mean(iter(apart), by_name=True)
    assert [*found] == [*wanted]
    assert all(tensors.same_bits(found[n], x) for n, x in wanted.items())
    assert asked == [(id(x), n) for n in wanted for x, _ in apart if n in x]
    with pytest.raises(ValueError, match="only"):
        tensors.weighted_mean(apart)


@pytest.mark.parametrize(
    ("x", "y"),
    [([0.0], [-0.0]), ([1.0], [2.0]), ([1.0], [[1.0]]), ([1.0], [1]), ([float("nan")], [-float("nan")])],
)
def test_the_same_bits_are_more_than_equal_numbers(x, y):
    assert tensors.same_bits(torch.tensor(x), torch.tensor(x))
    assert not tensors.same_bits(torch.tensor(x), torch.tensor(y))
