"""Compiled kernels for `hadamard v1` give torch's results bit for bit, need no memory, and never stand in the way."""

import importlib
import itertools
import logging
import math
import os
import re
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from compiling_libraries import library

from fedft.arithmetic import compiled as compiling
from fedft.randomness import hadamard_kernels, philox
from fedft.randomness.directions import exponent
from fedft.randomness.hadamard import Hadamard

NAME = "layers.0.q.weight"
CUDA = torch.cuda.is_available()


@pytest.fixture(params=[library("numba"), library("triton")])
def kernels(request, monkeypatch):
    """The name of a library; Triton's kernels run in its interpreter where there is no GPU."""
    if request.param == "triton" and not CUDA:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    return request.param


@pytest.fixture
def compiled(kernels):
    """The module of kernels."""
    return hadamard_kernels._loaded(kernels, device_of(kernels))


needs_numba = pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed: nothing to compile with")


def device_of(kernels: str) -> str:
    return "cuda" if kernels == "triton" and CUDA else "cpu"


def both(kernels: str, monkeypatch, act) -> None:
    """`act(device)` makes tensors: the same bits by torch and by the kernels."""
    found = []
    for way, device in (("torch", "cpu"), (kernels, device_of(kernels))):
        monkeypatch.setenv("FEDFT_KERNELS", way)
        found.append([t.cpu() for t in act(device)])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(bits(one), bits(other))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(z: Hadamard, x: torch.Tensor, coefficients: torch.Tensor, index: int, start: int, device: str):
    """What all methods make of x."""
    summed, added, into = (x.clone().to(device) for _ in range(3))
    z.axpy_(summed, NAME, coefficients, start=start)
    z.add_(added, NAME, index, -0.37, start=start)
    z.add_into(into.fill_(9), x.to(device), NAME, index, -0.37, start=start)
    product = z.dot(x.to(device), NAME, start=start)
    return summed, added, into, product, z.direction(NAME, index, x.shape, start=start, device=device)


# the same bits


@pytest.mark.parametrize("numel", [1, 31, 4095, 4096, 4097, 12_345])
@pytest.mark.parametrize(("start", "count"), [(0, 4096), (1, 1), (65_535, 5), (3 * 65_536 + 4095, 4096)])
def test_any_window_has_the_bits_of_torch(kernels, monkeypatch, numel, start, count):
    z, x, coefficients = Hadamard(2**64 - 1, count), normal(numel), normal(count, seed=1)
    x[::7] = -0.0
    both(kernels, monkeypatch, lambda device: everything(z, x, coefficients, count * 2 // 3, start, device))


@needs_numba
@pytest.mark.parametrize("seed", [0, 2**32, 2**64 - 1])
@pytest.mark.parametrize("numel", [65_536, 65_537, 300_001])
def test_many_superblocks_have_the_bits_of_torch(monkeypatch, seed, numel):
    z, x, coefficients = Hadamard(seed, 4096), normal(numel), normal(4096, seed=1)
    for start in (0, 70_000, 2**40 + 5):  # the number of a Philox block passes 32 bits
        both("numba", monkeypatch, lambda device, at=start: everything(z, x, coefficients, 4095, at, device))


@pytest.mark.parametrize("index", [0, 1, 2, 31, 32, 77, 1023, 2048, 4094, 4095])
def test_every_direction_has_the_bits_of_torch(kernels, monkeypatch, index):
    z = Hadamard(12, 4096)
    both(kernels, monkeypatch, lambda device: [z.direction(NAME, index, (4200,), start=61_000, device=device)])


@pytest.mark.parametrize("size", [1e-44, 1e-37, 1e-20, 1.0, 1e20, 2e28])
def test_any_scale_has_the_bits_of_torch(kernels, monkeypatch, size):
    """Coefficients near 2^96 and below the least unit, weights and values from subnormal to the largest float."""
    z, x = Hadamard(5, 8), normal(500).clamp(-3, 3) * 1e38
    coefficients = size * normal(8, seed=1).double()

    def act(device):
        small, large = (size * normal(500)).to(device), x.to(device)
        made = [*everything(z, small.cpu(), coefficients, 3, 11, device)]
        z.add_(small, NAME, 3, size)
        return [*made, small, z.dot(large, NAME), z.dot(small, NAME, scale_exponent=128)]

    both(kernels, monkeypatch, act)


def test_values_on_the_border_of_rounding_have_the_bits_of_torch(kernels, monkeypatch):
    """Halves go to the even number, the largest values to 2^22; sums of 4096 of those need more than 32 bits."""
    z, halves = Hadamard(5, 4096), (torch.arange(4096) - 2048 + 0.5) / 2**22
    halves[0] = 1 - 2.0**-24
    aligned = (1 - 2.0**-24) * z.direction(NAME, 1234, (4096,))
    assert z.dot(aligned, NAME)[1234] == 4096

    def act(device):
        return [z.dot(x.to(device), NAME) for x in (halves, -halves, aligned, -aligned, torch.ones(4096))]

    both(kernels, monkeypatch, act)


def test_the_largest_sums_have_the_bits_of_torch(kernels, monkeypatch):
    z, element = Hadamard(4, 4096), 1234
    aligned = torch.cat([z.direction(NAME, j, (1,), start=element) for j in range(4096)])

    def act(device):
        out = torch.zeros(4096, device=device)
        z.axpy_(out, NAME, (1 - 2.0**-24) * aligned.double())
        assert out[element] == pytest.approx(4096 * (1 - 2.0**-19), rel=1e-7)
        return [out]

    both(kernels, monkeypatch, act)


def test_sums_of_zero_keep_the_sign_that_torch_gives_them(kernels, monkeypatch):
    """z_0 + z_1 is zero in every other place, +0 or -0 as D has it; and no coefficients leave every bit."""
    z, before = Hadamard(6, 3), torch.tensor([-0.0, 0.0, 1e-45, -3.0]).repeat(300)

    def act(device):
        out, same = before.clone().to(device), before.clone().to(device)
        z.axpy_(out, NAME, torch.tensor([1.0, 1.0, 0.0]))
        z.axpy_(same, NAME, torch.zeros(3))
        assert torch.equal(bits(same.cpu()), bits(before))
        return [out]

    both(kernels, monkeypatch, act)


def test_a_walk_in_chunks_has_the_bits_of_one_call(kernels, monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", kernels)
    edges, device = [0, 1, 4096, 4100, 9000, 12_288, 12_300], device_of(kernels)
    z, x, coefficients = Hadamard(8, 100), normal(12_300).to(device), normal(100, seed=1)
    whole, parts, product = x.clone(), x.clone(), torch.zeros(100, dtype=torch.float64, device=device)
    z.axpy_(whole, NAME, coefficients)
    z.add_(whole, NAME, 7, 0.5)
    for a, b in itertools.pairwise(edges):
        z.axpy_(parts[a:b], NAME, coefficients, start=a)
        z.add_(parts[a:b], NAME, 7, 0.5, start=a)
        product += z.dot(x[a:b], NAME, start=a, scale_exponent=exponent(x))
    assert torch.equal(parts, whole)
    assert torch.equal(product, z.dot(x, NAME))


@needs_numba
def test_the_number_of_threads_does_not_show(monkeypatch):
    from fedft.randomness import hadamard_numba, hadamard_numba_copies, hadamard_numba_parts

    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    monkeypatch.setattr(hadamard_numba, "WORTH", 4096)
    for module in (hadamard_numba_parts, hadamard_numba_copies):
        monkeypatch.setattr(module, "WORTH", 4096)
    z, x, coefficients, threads = Hadamard(8, 4096), normal(200_001), normal(4096, seed=1), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(everything(z, x, coefficients, 7, 100, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for some in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], some, strict=True))


# tensors as they come


def test_shapes_parameters_and_views_are_taken_as_torch_takes_them(kernels, monkeypatch):
    z = Hadamard(6, 3)

    def act(device):
        parameter, none = torch.nn.Parameter(normal(7, 9).to(device)), torch.zeros(0, 4, device=device)
        z.axpy_(parameter, NAME, torch.ones(3))
        z.add_(parameter, NAME, 0, 1.0)
        z.axpy_(none, NAME, torch.ones(3))
        z.add_(none, NAME, 0, 1.0)
        inner = normal(90).to(device)
        z.axpy_(inner[3:50], NAME, torch.ones(3))
        products = [z.dot(x, NAME) for x in (parameter, parameter.t(), none, parameter[0, 0].expand(5, 5))]
        return [parameter.detach(), inner, *products, z.direction(NAME, 0, (), device=device)]

    both(kernels, monkeypatch, act)


def test_autograd_is_told_that_a_tensor_changed(kernels, monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", kernels)
    w = torch.ones(5, requires_grad=True, device=device_of(kernels))
    loss = (w * w).sum()
    Hadamard(6, 3).add_(w, NAME, 0, 1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_torch_refuses_is_refused_alike(kernels, monkeypatch):
    z, ones = Hadamard(0, 3), torch.ones(3)
    device = device_of(kernels)
    calls = [
        lambda: z.add_(torch.zeros(4, dtype=torch.bfloat16, device=device), NAME, 0, 1.0),
        lambda: z.add_(torch.zeros(3, 4, device=device).t(), NAME, 0, 1.0),
        lambda: z.add_(torch.zeros(4, device=device), NAME, 3, 1.0),
        lambda: z.add_(torch.zeros(4, device=device), NAME, 0, math.inf),
        lambda: z.add_(torch.zeros(4, device=device), NAME, 0, 1.0, start=-1),
        lambda: z.add_into(torch.zeros(4, device=device), torch.zeros(2, 2, device=device), NAME, 0, 1.0),
        lambda: z.axpy_(torch.zeros(4, dtype=torch.float64, device=device), NAME, ones),
        lambda: z.axpy_(torch.zeros(4, device=device), NAME, ones, start=-1),
        lambda: z.axpy_(torch.zeros(4, device=device), NAME, torch.ones(4)),
        lambda: z.dot(torch.tensor([math.nan], device=device), NAME),
        lambda: z.dot(torch.ones(2, device=device), NAME, scale_exponent=0),
        lambda: z.dot(torch.ones(2, device=device), NAME, start=-1),
        lambda: z.direction(NAME, -1, (2,), device=device),
    ]
    for call in calls:
        said = []
        for way in ("torch", kernels):
            monkeypatch.setenv("FEDFT_KERNELS", way)
            with pytest.raises(ValueError) as caught:  # noqa: PT011  (compared below)
                call()
            said.append(str(caught.value))
        assert said[0] == said[1]


@pytest.mark.parametrize("way", ["torch", library("numba")])
def test_adding_into_another_tensor_is_a_clone_and_an_addition(way, monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", way)
    z, x, out = Hadamard(3, 9), normal(3, 3000), torch.full((3, 3000), 7.0)
    before, expected = x.clone(), x.clone()
    z.add_into(out, x, NAME, 4, 1e-3)
    z.add_(expected, NAME, 4, 1e-3)
    assert torch.equal(out, expected)
    assert torch.equal(x, before)


# cost


@needs_numba
def test_kernels_take_no_memory_that_grows_with_the_tensor(monkeypatch):
    """A replay touches the weights and what fits into the first two caches: no bits, no temporaries of their size."""
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    z, w, coefficients = Hadamard(3, 4096), torch.zeros(3_000_000), torch.ones(4096)
    z.axpy_(w[:1], NAME, coefficients)
    z.dot(w[:1], NAME)
    z.add_(w[:1], NAME, 0, 1.0)
    tracemalloc.start()
    try:
        z.axpy_(w, NAME, coefficients)
        z.dot(w, NAME)
        z.add_(w, NAME, 0, 1.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 400_000
    assert not z._kept
    assert not z._last


@needs_numba
@pytest.mark.parametrize("kernel", ["rotate", "random_words"])
def test_the_inner_loops_are_compiled_to_vectors(kernel):
    """One number at a time they would take five times as long."""
    import numba

    from fedft.randomness import hadamard_numba_parts

    buffers = [numba.int32[::1]] * 2
    types = {
        "rotate": buffers,
        "random_words": [numba.uint32[::1], numba.uint64, numba.uint32, numba.uint32, numba.int64],
    }
    compiled = numba.njit(tuple(types[kernel]), error_model="numpy")(getattr(hadamard_numba_parts, kernel).py_func)
    (text,) = compiled.inspect_llvm().values()
    assert re.search(r"= (add|xor) <\d+ x i(32|64)>", text)


COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fedft.randomness import hadamard_triton as kernels
window = dict(size="i32", start="i64", first="i32")
key = dict(k0="i32", k1="i32", name="i32")
how = dict(sums=True, steps=True, one=False)
for kernel, types in (
    (kernels._axpy, dict(out="*fp32", **window, **key, coefficients="*i32", unit="fp32")),
    (kernels._dot, dict(x="*fp32", **window, blocks="i32", **key, scale="fp32", total="*i64")),
    (kernels._add, dict(out="*fp32", x="*fp32", **window, **key, index="i32", alpha="fp32")),
    *(
        (kernels._copy, dict(out=copy, x=copy, size="i32", **key, o0="i32", o1="i32", keep="fp32", integers="*i32",
                             unit="fp32", index="i32", alpha="fp32", reads_bits=bits, writes_bits=bits, **how))
        for copy, bits in (("*i16", True), ("*fp16", False))
    ),
):
    signature = {n: "constexpr" if isinstance(t, bool) else t for n, t in types.items()}
    fixed = {n: t for n, t in types.items() if isinstance(t, bool)}
    made = compile(ASTSource(kernel, signature, fixed), target=GPUTarget("cuda", 90, 32), options=kernels._HOW)
    assert ".local" not in made.asm["ptx"], "registers do not hold a block"
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("triton"), reason="triton is not installed: nothing compiles kernels with it")
def test_triton_compiles_every_kernel_for_a_gpu_that_is_not_here(tmp_path):
    """Its interpreter takes programs that its compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run([sys.executable, "-W", "error", "-c", COMPILE], env=environment, check=True)


# which one is used


@pytest.fixture
def fresh(monkeypatch):
    """A process that has done nothing yet, and nobody has chosen for it."""
    monkeypatch.delenv("FEDFT_KERNELS", raising=False)
    monkeypatch.setattr(compiling, "_done", type(compiling._done)())
    trusted = hadamard_kernels._trusted
    trusted.cache_clear()
    yield
    trusted.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_kernels_are_loaded_when_torch_has_worked_as_long_as_that_takes(monkeypatch):
    monkeypatch.setattr(compiling, "PAYS", 40 * (100 + compiling.CALL))
    monkeypatch.setattr(hadamard_kernels, "_trusted", lambda library, kind: (library, kind))
    z, w = Hadamard(3, 9), torch.zeros(100)
    for _ in range(10):
        z.add_(w, NAME, 0, 1.0)
    for _ in range(3):
        z.dot(w, NAME)  # as costly as ten
    assert hadamard_kernels.chosen(w) == ("numba", "cpu")
    assert hadamard_kernels.chosen(torch.zeros(0)) is None


@pytest.mark.usefixtures("fresh")
def test_a_small_run_never_waits_for_a_compiler(tmp_path):
    """A fresh process: torch does it, and the libraries are not even imported."""
    code = (
        "import sys, torch\nfrom fedft.randomness.hadamard import Hadamard\n"
        "Hadamard(1, 4096).axpy_(torch.zeros(100_000), 'w', torch.ones(4096))\n"
        "assert not {'numba', 'triton'} & set(sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "FEDFT_KERNELS"}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("fault", ["it raises", "it is wrong"])
def test_kernels_that_do_not_work_are_told_of_once_and_left_alone(fault, monkeypatch, caplog):
    def no_compiler(*_: object) -> None:
        raise OSError("no compiler")

    wrong = SimpleNamespace(
        axpy_=no_compiler if fault == "it raises" else lambda *_: None,
        add_into=lambda *_: None,
        dot=lambda *_: torch.zeros(4096, dtype=torch.int64),
    )
    monkeypatch.setattr(compiling, "PAYS", 0)
    monkeypatch.setattr(hadamard_kernels, "_loaded", hadamard_kernels._loaded.__wrapped__)
    monkeypatch.setattr(importlib, "import_module", lambda name: wrong)
    z, w = Hadamard(3, 9), torch.zeros(100)
    with caplog.at_level(logging.WARNING):
        z.add_(w, NAME, 0, 1.0)
        z.add_(w, NAME, 0, 1.0)
    (record,) = caplog.records
    assert "torch does their work" in record.message
    assert ("no compiler" if fault == "it raises" else hadamard_kernels.KNOWN_ANSWER) in record.message
    assert w.abs().tolist() == [2.0] * 100
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    with pytest.raises((OSError, RuntimeError), match=r"no compiler|is right"):
        z.add_(w, NAME, 0, 1.0)


@pytest.mark.usefixtures("fresh")
def test_without_the_library_torch_says_nothing(monkeypatch, caplog):
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(compiling, "PAYS", 0)
    monkeypatch.setattr(hadamard_kernels, "_loaded", hadamard_kernels._loaded.__wrapped__)
    monkeypatch.setattr(importlib, "import_module", absent)
    assert hadamard_kernels.chosen(torch.zeros(3)) is None
    assert not caplog.records


def test_a_library_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", "nunba")
    with pytest.raises(ValueError, match=r"FEDFT_KERNELS is 'nunba', wanted one of .*did you mean 'numba'"):
        Hadamard(3, 9).dot(torch.zeros(3), NAME)


def test_the_known_answer_is_the_one_of_torch(monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", "torch")
    monkeypatch.setattr(philox, "tensor_id", lambda name: 2**32 - 1)
    z = Hadamard(2**64 - 7, 4096)
    torch_alone = SimpleNamespace(
        axpy_=lambda x, start, key, name, integers, unit: z.axpy_(x, NAME, integers * unit, start=start),
        add_into=lambda out, x, start, key, name, index, alpha: z.add_into(out, x, NAME, index, alpha, start=start),
        dot=lambda x, start, key, name, scale: (scale * z.dot(x, NAME, start=start, scale_exponent=10)).long(),
    )
    assert hadamard_kernels.answer(torch_alone, "cpu") == hadamard_kernels.KNOWN_ANSWER


def test_kernels_give_the_known_answer(kernels, compiled):
    assert hadamard_kernels.answer(compiled, device_of(kernels)) == hadamard_kernels.KNOWN_ANSWER


@needs_numba
def test_a_read_only_installation_compiles_without_keeping(monkeypatch):
    from fedft.randomness import hadamard_numba

    asked = []

    def njit(cache=False, **_):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(hadamard_numba.numba, "njit", njit)
    assert hadamard_numba.compiled(len) is len
    assert asked == [True, False]
