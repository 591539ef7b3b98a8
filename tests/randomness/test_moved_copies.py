"""Copies of weights at an offset: by kernels, by torch and by hand the same bits, in every precision."""

import itertools
import logging
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from compiling_libraries import library
from torch import Tensor

from fedft.randomness import directions, families, hadamard_kernels, moved_copies, philox
from fedft.randomness.hadamard import Hadamard
from fedft.randomness.masked import Masked
from fedft.randomness.moved_copies import Offset

NAME = "layers.0.q.weight"
CUDA = torch.cuda.is_available()
PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)
SAME, OTHER = Hadamard(2**64 - 1, 4096), Hadamard(9, 50)


@pytest.fixture(params=[library("numba"), library("triton")])
def kernels(request, monkeypatch):
    """The name of a library; Triton's kernels run in its interpreter where there is no GPU."""
    if request.param == "triton" and not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("FEDFT_KERNELS", request.param)
    return request.param


@pytest.fixture
def device(kernels) -> str:
    return "cuda" if kernels == "triton" and CUDA else "cpu"


def bits(x: Tensor) -> Tensor:
    return x.cpu().contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def weights(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of many sizes, with zeros of both signs and, in halves, numbers below the normal ones."""
    g = torch.Generator().manual_seed(seed)
    x = 0.02 * torch.randn(n, generator=g) * torch.exp2(torch.randint(-20, 3, (n,), generator=g).float())
    x[::5], x[1::7] = -0.0, 0.0
    return x.to(dtype)


def offset(keep: float, z=SAME, size: float = 1e-3) -> Offset:
    coefficients = size * torch.randn(z.count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return Offset(z, coefficients, keep)


def by_hand(x: Tensor, dtype: torch.dtype, at: Offset | None, step) -> Tensor:
    """The formula, an operation at a time on the whole tensor."""
    y = x.float()
    if at is not None:
        y = y * at.keep
        at.z.axpy_(y, NAME, at.coefficients)
    if step is not None:
        step[0].add_(y, NAME, step[1], step[2])
    return y.to(dtype)


def filled(x: Tensor, dtype: torch.dtype, at: Offset | None, step, device: str = "cpu") -> Tensor:
    out = torch.full(x.shape, 7.0, dtype=dtype, device=device)
    with np.errstate(all="ignore"):  # Triton's interpreter multiplies in NumPy, which warns of a NaN
        moved_copies.fill(out, x.to(device), NAME, at, step)
    return out


CASES = {
    "nothing": (None, None),
    "a step": (None, (OTHER, 49, -3e-3)),
    "an offset": (offset(0.9993), None),
    "an offset of zeros": (Offset(SAME, torch.zeros(4096, dtype=torch.float64)), (SAME, 5, 1e-3)),
    "both": (offset(1.0), (SAME, 4095, 1e-3)),
    "both, other directions": (offset(0.9993), (OTHER, 17, -1e-3)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("numel", [1, 4097])
def test_kernels_have_the_bits_of_the_formula_in_every_precision(kernels, device, case, numel):
    at, step = CASES[case]
    for one, other in itertools.product(PRECISIONS, repeat=2):
        x = weights(numel, one)
        got = filled(x, other, at, step, device)
        assert torch.equal(bits(got), bits(by_hand(x, other, at, step))), (one, other)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["torch", library("numba")])
def test_many_superblocks_and_pieces_have_the_bits_of_the_formula(monkeypatch, way, case):
    monkeypatch.setenv("FEDFT_KERNELS", way)
    at, step = CASES[case]
    x = weights(moved_copies.CHUNK + 70_001, torch.bfloat16).view(-1, 1)
    before = x.clone()
    assert torch.equal(bits(filled(x, torch.bfloat16, at, step)), bits(by_hand(x, torch.bfloat16, at, step)))
    assert torch.equal(bits(x), bits(before))


@pytest.mark.parametrize("family", ["gaussian", "rademacher", "masked"])
def test_other_families_have_the_bits_of_the_formula(family):
    z = Masked(Hadamard(4, 8), seed=5, zeroed=0.5) if family == "masked" else families.make(family, 4, 8)
    x, at = weights(5000, torch.bfloat16), offset(0.99, z)
    for step in (None, (z, 3, 1e-3)):
        assert torch.equal(bits(filled(x, torch.bfloat16, at, step)), bits(by_hand(x, torch.bfloat16, at, step)))


def test_every_float16_is_read_and_the_nearest_is_written(kernels, device):
    """All 65,536 of them, and float32 in between: ties, subnormal ones, those beyond the largest."""
    halves = torch.arange(-32768, 32768).to(torch.int16).view(torch.float16)
    between = torch.cat([halves.float(), halves.float() * (1 + 2.0**-11), halves.float() * (1 - 2.0**-12)])
    ties = (halves[:-1].float() + halves[1:].float()) / 2
    for x, dtype in ((halves, torch.float32), (torch.cat([between, ties]), torch.float16)):
        got, want = filled(x, dtype, None, None, device).cpu(), x.to(dtype)
        numbers = ~want.isnan()
        assert torch.equal(bits(got)[numbers], bits(want)[numbers])
        assert got[~numbers].isnan().all()
        assert (~numbers).any()


def test_the_nearest_bfloat16_is_written(kernels, device):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=g).to(torch.int32).view(torch.float32)
    x[:3] = torch.tensor([float("inf"), float("-inf"), 3.4e38])
    x[3:50_000] = ((bits(x[3:50_000]) & ~0xFFFF) | 0x8000).view(torch.float32)  # ties
    got, want = filled(x, torch.bfloat16, None, None, device).cpu(), x.to(torch.bfloat16)
    numbers = ~want.isnan()
    assert torch.equal(bits(got)[numbers], bits(want)[numbers])
    assert got[~numbers].isnan().all()


def test_the_number_of_a_direction_and_a_step_are_looked_at(kernels, device):
    x = weights(8, torch.bfloat16)
    for step in ((OTHER, 50, 1e-3), (OTHER, -1, 1e-3), (OTHER, 0, float("nan"))):
        with pytest.raises(ValueError, match="expected a"):
            filled(x, torch.bfloat16, None, step, device)


@pytest.mark.parametrize("way", ["torch", library("numba")])
def test_coefficients_are_made_integers_once_for_all_tensors_of_an_offset(monkeypatch, way):
    monkeypatch.setenv("FEDFT_KERNELS", way)
    asked = []
    before = directions.quantised
    monkeypatch.setattr(directions, "quantised", lambda *a: (asked.append(a), before(*a))[1])
    at = offset(1.0)
    for n in (10, 5000, moved_copies.CHUNK + 1):
        filled(weights(n, torch.bfloat16), torch.bfloat16, at, None)
    assert len(asked) == 1
    filled(weights(10, torch.bfloat16), torch.bfloat16, at.moved(SAME, at.coefficients, 1.0), None)
    assert len(asked) == 2


def test_kernels_make_a_copy_in_one_call(monkeypatch, kernels, device):
    module = hadamard_kernels._loaded(kernels, device)
    calls = []
    filled(weights(9, torch.bfloat16), torch.bfloat16, *CASES["both"], device)  # tried, as they are the first time
    before = module.copy_moved
    monkeypatch.setattr(module, "copy_moved", lambda *a: (calls.append(a), before(*a))[1])
    filled(weights(9000, torch.bfloat16), torch.bfloat16, *CASES["both"], device)
    assert len(calls) == 1


def by_torch(out, x, name, keep, summed, step):
    seed, integers, unit = summed
    at = Offset(Hadamard(seed, 4096), integers.double() * unit, keep)
    moved_copies.fill(out, x, NAME, at, (Hadamard(step[0], 4096), *step[1:]))


def test_the_known_copies_are_those_of_torch(monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", "torch")
    monkeypatch.setattr(philox, "tensor_id", lambda name: 2**32 - 1)
    assert hadamard_kernels.copies(SimpleNamespace(copy_moved=by_torch), "cpu") == hadamard_kernels.KNOWN_COPIES


@pytest.mark.parametrize("fault", ["it raises", "it is wrong"])
def test_copies_that_are_not_right_are_left_to_torch_and_said_once(monkeypatch, caplog, fault):
    def copy_moved(out, *_):
        if fault == "it raises":
            raise OSError("no compiler")
        out.zero_()

    monkeypatch.delenv("FEDFT_KERNELS", raising=False)
    wrong = ModuleType("wrong")
    wrong.copy_moved = copy_moved
    monkeypatch.setattr(hadamard_kernels, "chosen", lambda x, cost=1: wrong if cost == moved_copies.COST else None)
    x, (at, step) = weights(100, torch.bfloat16), CASES["both"]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(bits(filled(x, x.dtype, at, step)), bits(by_hand(x, x.dtype, at, step)))
    (record,) = caplog.records
    assert "torch does their work" in record.message
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    with pytest.raises((OSError, RuntimeError), match=r"no compiler|is right"):
        filled(x, x.dtype, at, step)
