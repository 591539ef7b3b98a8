"""What every family of directions promises, and `hadamard v1` bit by bit."""

import hashlib
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedft.randomness import hadamard, hadamard_bits, philox
from fedft.randomness.directions import Directions, exponent
from fedft.randomness.families import FAMILIES, make
from fedft.randomness.hadamard import Hadamard
from fedft.randomness.independent import Gaussian, Rademacher, Table

EXACT = ("hadamard", "rademacher")
NAME = "layers.0.q.weight"
every_family = pytest.mark.parametrize("family", FAMILIES)
exact_families = pytest.mark.parametrize("family", EXACT)


@pytest.fixture
def one_thread_after():
    """Put the number of threads back, whatever the test did with it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matrix(z: Directions, numel: int, name: str = NAME) -> torch.Tensor:
    """All directions as float64 [K, numel]."""
    return torch.stack([z.direction(name, j, (numel,)) for j in range(z.count)]).double()


def sums(z: Directions, coefficients: torch.Tensor, numel: int, start: int = 0, name: str = NAME) -> torch.Tensor:
    out = torch.zeros(numel)
    z.axpy_(out, name, coefficients, start=start)
    return out


def oracle(seed: int, name: str, index: int, element: int) -> int:
    """`hadamard v1` as its definition reads, one bit at a time."""
    block, i = divmod(element, 4096)
    superblock, within = divmod(block, 16)

    def bit(purpose: int, k: int) -> int:
        place = superblock * 512 + k // 128
        counter = (place % 2**32, place // 2**32, philox.tensor_id(name), purpose)
        return philox.philox4x32(counter, (seed % 2**32, seed // 2**32))[k // 32 % 4] >> k % 32 & 1

    minus = bit(1, 4096 * within + i) + bit(6, 16 * index + within) + bin(i & index).count("1")
    return (-1) ** minus


# hadamard v1


def test_hadamard_is_its_definition_bit_by_bit():
    """A tensor of 17 blocks and a ragged end, so both superblocks and an incomplete block are seen."""
    seed, numel = 2**63 + 12345, 17 * 4096 + 100
    z = Hadamard(seed, 4096)
    for index in (0, 1, 2, 77, 1023, 4094, 4095):
        signs = z.direction(NAME, index, (numel,))
        for element in [*range(0, numel, 997), 4095, 4096, 65535, 65536, numel - 1]:
            assert signs[element] == oracle(seed, NAME, index, element)


def test_hadamard_sums_and_products_are_those_of_the_definition():
    seed, start, numel, count = 3, 65_500, 70, 5
    z = Hadamard(seed, count)
    signs = torch.tensor([[oracle(seed, "w", j, start + e) for e in range(numel)] for j in range(count)]).double()
    coefficients = torch.tensor([1.0, -3.0, 0.0, 100.0, 7.0])  # multiples of the unit: nothing is rounded
    assert torch.equal(sums(z, coefficients, numel, start, "w").double(), coefficients.double() @ signs)
    x = torch.arange(numel).float() - 30
    assert torch.equal(z.dot(x, "w", start=start), signs @ x.double())


def test_hadamard_v1_is_frozen():
    """Another layout would be another wire format: it needs another name, not other literals here."""
    z = Hadamard(7, 4096)

    def text(signs: torch.Tensor) -> str:
        return "".join("+" if sign > 0 else "-" for sign in signs)

    assert text(z.direction(NAME, 0, (32,))) == "+-+++++--+--+-++------+++++-+++-"
    assert text(z.direction(NAME, 4095, (32,), start=70_000)) == "--+------+---++---+--++-+----+-+"
    total = sums(z, (torch.arange(4096) % 97 - 48) / 64, 70_001)
    digest = hashlib.sha256(total.numpy().tobytes()).hexdigest()
    assert digest == "98f708ba89cc8c14a220dce251870a837cb5bed8e3def19ea3d5101e750549ab"
    digest = hashlib.sha256(z.dot(total, NAME).numpy().tobytes()).hexdigest()
    assert digest == "7a21d759cbb1c95e1d6ebeb244aa66ed9c6024dd216ac7944e41c5268cd57edf"


def test_full_blocks_of_different_directions_are_orthogonal():
    z = Hadamard(0, 4096)
    rows = torch.stack([z.direction(NAME, j, (3 * 4096,)) for j in range(0, 4096, 63)]).view(-1, 3, 4096)
    gram = torch.einsum("jbi,kbi->bjk", rows, rows)
    assert torch.equal(gram, 4096 * torch.eye(len(rows)).expand(3, -1, -1))


def test_one_full_block_is_rebuilt_from_all_its_products():
    """K = M: the directions are a basis, so (1/K) sum_j <x, z_j> z_j is x (up to the 19 bits of a coefficient)."""
    z, x = Hadamard(1, 4096), normal(4096)
    rebuilt = sums(z, z.dot(x, NAME) / 4096, 4096)
    assert torch.allclose(rebuilt, x, atol=1e-3, rtol=0)


def test_rademacher_v1_is_frozen():
    signs = Rademacher(7, 3).direction(NAME, 2, (32,))
    assert "".join("+" if sign > 0 else "-" for sign in signs) == "++--++---+--+---+-+--++-+++-+---"
    words = philox.words(philox.derive(7, "rademacher", 2), 1, philox.tensor_id(NAME), 0, 3).flatten().tolist()
    bits = [words[e // 32] >> e % 32 & 1 for e in range(300)]
    assert Rademacher(7, 3).direction(NAME, 2, (300,)).tolist() == [1 - 2 * bit for bit in bits]


def test_gaussian_v1_is_box_muller_of_two_words():
    words = philox.words(philox.derive(7, "gaussian", 2), 1, philox.tensor_id(NAME), 0, 3).flatten().tolist()
    expected = []
    for first, second in zip(words[0::2], words[1::2], strict=True):
        radius, angle = math.sqrt(-2 * math.log((first + 1) / 2**32)), 2 * math.pi * (second >> 8) / 2**24
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    assert torch.allclose(Gaussian(7, 3).direction(NAME, 2, (12,)), torch.tensor(expected), atol=2e-6)


def test_hadamard_keeps_signs_of_a_bounded_number_of_windows(monkeypatch):
    """Shifting windows of one tensor, twice: what is dropped is made again with the same bits."""
    monkeypatch.setattr(hadamard, "MAX_WINDOWS", 5)
    z = Hadamard(8, 9)
    whole = z.direction(NAME, 3, (40 * 4096,))
    for start in [*range(0, 30 * 4096, 4096)] * 2:
        assert torch.equal(z.direction(NAME, 3, (4096,), start=start), whole[start : start + 4096])
        assert len(z._last) <= 5


# every family


@every_family
def test_one_direction_is_the_same_through_every_door(family):
    """Filled, added, summed with one coefficient, and met in a product."""
    z, numel = make(family, 11, 6), 5000
    row = z.direction(NAME, 4, (50, 100))
    assert row.dtype == torch.float32
    assert row.shape == (50, 100)
    added = torch.zeros(50, 100)
    z.add_(added, NAME, 4, 0.37)
    assert torch.equal(added, torch.tensor(0.37) * row)
    only = torch.zeros(6)
    only[4] = 1.0
    assert torch.allclose(sums(z, only, numel), row.flatten(), atol=1e-5)
    x = normal(numel)
    assert torch.allclose(z.dot(x, NAME)[4], x.double() @ row.flatten().double(), atol=numel * 2.0**-20, rtol=0)


@every_family
def test_sums_and_products_agree_with_float64_within_the_stated_error(family):
    count, numel = 40, 9001
    z, coefficients, x = make(family, 2, count), normal(count, seed=1), normal(numel, seed=2)
    rows = matrix(z, numel)
    unit = 2.0 ** (math.frexp(coefficients.abs().max().item())[1] - 19)
    exact = coefficients.double() @ rows
    error = (sums(z, coefficients, numel).double() - exact).abs()
    assert (error <= count * unit + 2.0**-24 * (exact.abs() + count * unit)).all()
    assert error.max() <= 6 * (count / 12) ** 0.5 * unit + 2.0**-23 * exact.abs().max()  # what is typical
    unit = 2.0 ** (exponent(x) - 22)
    error = (z.dot(x, NAME) - rows @ x.double()).abs().max().item()
    assert error <= numel * unit / 2
    assert error <= 6 * (numel / 12) ** 0.5 * unit  # what is typical


@every_family
def test_what_was_there_stays_under_the_sum(family):
    z, out, coefficients = make(family, 2, 9), normal(600), normal(9, seed=1)
    before = out.clone()
    z.axpy_(out, NAME, coefficients)
    assert torch.allclose(out, before + sums(z, coefficients, 600), atol=1e-6)


@every_family
@settings(max_examples=12, deadline=None)
@given(cuts=st.lists(st.integers(1, 69_999), max_size=4), index=st.integers(0, 4))
def test_a_tensor_may_be_walked_in_any_chunks(family, cuts, index):
    numel, edges = 70_000, sorted({0, 70_000, *cuts})
    z, coefficients, x = make(family, 8, 5), normal(5), normal(numel)
    fill, added, total, product = torch.empty(numel), torch.zeros(numel), torch.zeros(numel), torch.zeros(5).double()
    for a, b in itertools.pairwise(edges):
        fill[a:b] = z.direction(NAME, index, (b - a,), start=a)
        z.add_(added[a:b], NAME, index, 1.5, start=a)
        z.axpy_(total[a:b], NAME, coefficients, start=a)
        product += z.dot(x[a:b], NAME, start=a, scale_exponent=exponent(x))
    bitwise = family in EXACT
    whole, whole_added = z.direction(NAME, index, (numel,)), torch.zeros(numel)
    z.add_(whole_added, NAME, index, 1.5)
    for pieces, at_once in (
        (fill, whole), (added, whole_added), (total, sums(z, coefficients, numel)), (product, z.dot(x, NAME))
    ):  # fmt: skip
        assert torch.equal(pieces, at_once) if bitwise else torch.allclose(pieces, at_once, atol=1e-5)


@exact_families
def test_the_size_of_working_chunks_does_not_show(family, monkeypatch):
    numel, count = 100_000, 20
    z, coefficients, x = make(family, 8, count), normal(count), normal(numel)
    usual = sums(z, coefficients, numel), z.dot(x, NAME), z.direction(NAME, 3, (numel,))
    monkeypatch.setattr(hadamard, "CHUNK", 1 << 16)
    monkeypatch.setattr(hadamard_bits, "PHILOX_CHUNK", 100)
    monkeypatch.setattr(hadamard, "CACHE_BYTES", 0)
    monkeypatch.setattr(Rademacher, "together", 1 << 12)
    z = make(family, 8, count)
    small = sums(z, coefficients, numel), z.dot(x, NAME), z.direction(NAME, 3, (numel,))
    assert all(torch.equal(a, b) for a, b in zip(usual, small, strict=True))


@exact_families
@pytest.mark.usefixtures("one_thread_after")
def test_the_number_of_threads_does_not_show(family):
    count = 4096 if family == "hadamard" else 30
    z, coefficients, x = make(family, 8, count), normal(count), normal(300_001)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append((sums(z, coefficients, 300_001), z.dot(x, NAME), z.direction(NAME, 3, (300_001,))))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here to compare with the CPU")
@exact_families
def test_a_gpu_gives_the_same_bits(family):
    z, coefficients, x = make(family, 8, 100), normal(100), normal(300_001)
    total, added = torch.zeros(300_001, device="cuda"), torch.zeros(300_001, device="cuda")
    z.axpy_(total, NAME, coefficients)
    z.add_(added, NAME, 7, 0.3)
    assert torch.equal(total.cpu(), sums(z, coefficients, 300_001))
    assert torch.equal(added.cpu(), torch.tensor(0.3) * z.direction(NAME, 7, (300_001,)))
    assert torch.equal(z.dot(x.cuda(), NAME).cpu(), z.dot(x, NAME))


@every_family
def test_other_tensors_and_their_order_do_not_matter(family):
    names = ["a", "b", "c"]
    forward, backward = make(family, 3, 4), make(family, 3, 4)
    one = {name: forward.direction(name, 1, (500,)) for name in names}
    other = {name: backward.direction(name, 1, (500,)) for name in reversed(names)}
    alone = make(family, 3, 4).direction("b", 1, (500,))
    assert all(torch.equal(one[name], other[name]) for name in names)
    assert torch.equal(one["b"], alone)
    assert not torch.equal(one["a"], one["b"])


@every_family
def test_a_shorter_list_of_directions_is_the_beginning_of_a_longer_one(family):
    short, long = make(family, 3, 4), make(family, 3, 9)
    assert torch.equal(matrix(short, 300), matrix(long, 300)[:4])


@every_family
def test_alternating_directions_and_tensors_do_not_confuse_what_is_kept(family):
    z = make(family, 3, 9)
    for name, index, numel in [("a", 1, 70_000), ("b", 1, 300), ("a", 2, 70_000), ("a", 1, 300), ("a", 1, 70_000)] * 2:
        assert torch.equal(z.direction(name, index, (numel,)), make(family, 3, 9).direction(name, index, (numel,)))


@every_family
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_entries_have_mean_zero_and_variance_one_for_every_seed(family, seed):
    z, numel = make(family, seed, 3), 100_000
    rows = matrix(z, numel)
    assert (rows.mean(1).abs() < 4.5 / numel**0.5).all()
    assert (rows.var(1) - 1).abs().max() < 6.5 / numel**0.5
    gram = rows @ rows.T
    assert (gram - gram.diag().diag()).abs().max() < 5 * numel**0.5


@every_family
def test_seeds_that_share_their_low_words_differ(family):
    assert not torch.equal(matrix(make(family, 5, 2), 400), matrix(make(family, 5 + 2**32, 2), 400))


@pytest.mark.parametrize(("family", "kappa"), [("rademacher", 1), ("gaussian", 3)])
def test_reconstruction_errs_by_the_law_of_independent_entries(family, kappa):
    """E |x_hat - x|^2 = (d + kappa - 2) / K |x|^2 for x_hat = (1/K) sum_j <z_j, x> z_j."""
    numel, count = 1024, 64
    assert relative_error(family, numel, count) == pytest.approx((numel + kappa - 2) / count, rel=0.05)


@pytest.mark.parametrize("numel", [1024, 4096, 3 * 4096 + 1000])
def test_hadamard_reconstruction_is_never_worse_than_independent_signs(numel):
    count = 64
    found = relative_error("hadamard", numel, count)
    assert found <= (numel - 1) / count * 1.05
    if numel == 4096:  # K orthogonal directions of length sqrt(d): |x_hat|^2 is d/K times the energy they catch
        assert found == pytest.approx(numel / count - 1, rel=0.05)


def relative_error(family: str, numel: int, count: int, runs: int = 60) -> float:
    """Mean of |x_hat - x|^2 / |x|^2 over seeds."""
    total = 0.0
    for seed in range(runs):
        z, x = make(family, seed, count), normal(numel, seed=seed)
        total += ((sums(z, z.dot(x, NAME) / count, numel) - x).square().sum() / x.square().sum()).item()
    return total / runs


@every_family
def test_products_are_linear_and_adjoint_to_sums(family):
    """<sum_j a_j z_j, x> = sum_j a_j <z_j, x>."""
    z, coefficients, x = make(family, 6, 30), normal(30), normal(5000)
    left = sums(z, coefficients, 5000).double() @ x.double()
    assert left.item() == pytest.approx((coefficients.double() @ z.dot(x, NAME)).item(), abs=1e-2)


@exact_families
def test_integer_coefficients_add_up_exactly(family):
    """Pools add: summing two pools or two replays is the same, bit for bit, where no rounding happens."""
    z = make(family, 6, 30)
    a = torch.arange(30).float() - 7
    assert torch.equal(sums(z, a, 5000) + sums(z, 2 * a, 5000), sums(z, 3 * a, 5000))


@every_family
def test_zero_coefficients_leave_every_bit(family):
    out = torch.tensor([-0.0, 1e-45, 3.0])
    before = out.clone()
    make(family, 6, 30).axpy_(out, NAME, torch.zeros(30))
    assert torch.equal(out.view(torch.int32), before.view(torch.int32))


@exact_families
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e20])
def test_the_scale_follows_the_largest_coefficient(family, size):
    z, coefficients = make(family, 6, 8), size * normal(8).double()
    exact = coefficients @ matrix(z, 200)
    tolerance = 1e-4 * exact.abs().max().item() if size > 1e-30 else 8 * 2.0**-126
    assert (sums(z, coefficients, 200).double() - exact).abs().max().item() <= tolerance


def test_the_largest_coefficients_of_all_directions_do_not_overflow():
    """Coefficients that round up to 2^19 are held one below; aligned with an element, all 4096 still fit int32."""
    z, element = Hadamard(4, 4096), 1234
    aligned = torch.cat([z.direction(NAME, j, (1,), start=element) for j in range(4096)])
    found = sums(z, (1 - 2.0**-24) * aligned.double(), 4096)[element].item()
    assert found == pytest.approx(4096 * (1 - 2.0**-19), rel=1e-7)


@every_family
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1,), (3, 1, 2)])
def test_every_shape_is_legal(family, shape):
    z, out = make(family, 6, 3), torch.zeros(shape)
    z.axpy_(out, NAME, torch.ones(3))
    z.add_(out, NAME, 0, 1.0)
    assert z.direction(NAME, 0, shape).shape == shape
    assert z.dot(out, NAME).shape == (3,)


@every_family
def test_parameters_that_train_may_be_written_to(family):
    parameter = torch.nn.Parameter(torch.zeros(10))
    z = make(family, 6, 3)
    z.axpy_(parameter, NAME, torch.ones(3))
    z.add_(parameter, NAME, 0, 1.0)
    assert not z.dot(parameter, NAME).requires_grad
    assert parameter.abs().sum() > 0


@every_family
def test_what_is_returned_belongs_to_the_caller(family):
    z = make(family, 6, 3)
    first = z.direction(NAME, 0, (100,))
    kept = first.clone()
    first.zero_()
    assert torch.equal(z.direction(NAME, 0, (100,)), kept)


def test_products_of_a_transposed_tensor_read_it_row_by_row():
    z, x = Hadamard(6, 3), normal(30, 40)
    assert torch.equal(z.dot(x.t(), NAME), z.dot(x.t().contiguous(), NAME))


# injected directions


def test_a_table_gives_exactly_what_it_was_given():
    vectors = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
    z = Table({"w": vectors})
    out = torch.ones(3)
    z.axpy_(out, "w", torch.tensor([2.0, -4.0]))
    assert z.count == 2
    assert torch.equal(z.direction("w", 1, (3,)), vectors[1])
    assert out.tolist() == [1.0, 5.0, -13.0]  # 1 + 2 * 1 - 4 * 0.5, 1 + 2 * 2, 1 - 2 - 12
    assert z.dot(torch.tensor([1.0, 1.0, 2.0]), "w").tolist() == [1.0, 6.5]  # 1 + 2 - 2, 0.5 + 6
    z.direction("w", 1, (3,)).zero_()
    assert z.direction("w", 1, (2,), start=1).tolist() == [0.0, 3.0]
    z.add_(out, "w", 0, 2.0)
    assert out.tolist() == [3.0, 9.0, -15.0]


def test_a_table_refuses_what_it_does_not_hold():
    z = Table({"w": torch.ones(2, 3)})
    with pytest.raises(ValueError, match="no directions for tensor 'v'; known: w"):
        z.direction("v", 0, (3,))
    with pytest.raises(ValueError, match="have 3 elements, 4 asked"):
        z.direction("w", 0, (4,))
    with pytest.raises(ValueError, match="vectors of one K"):
        Table({"w": torch.ones(2, 3), "v": torch.ones(3, 3)})


# arguments


def test_a_family_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"family is 'cauchy', wanted one of gaussian, hadamard, rademacher$"):
        make("cauchy", 0, 1)
    with pytest.raises(ValueError, match="did you mean 'hadamard'"):
        make("hadamart", 0, 1)


@pytest.mark.parametrize(
    ("family", "count"), [("hadamard", 0), ("hadamard", 4097), ("rademacher", 0), ("gaussian", -1)]
)
def test_a_count_out_of_range_is_refused(family, count):
    with pytest.raises(ValueError, match="count"):
        make(family, 0, count)


@every_family
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(family, seed):
    with pytest.raises(ValueError, match="seed"):
        make(family, seed, 1)


@every_family
@pytest.mark.parametrize(
    ("coefficients", "message"),
    [
        (torch.ones(4), "expected 3 coefficients"),
        (torch.ones(1, 3), "expected 3 coefficients"),
        (torch.ones(3, dtype=torch.int64), "float32 or float64"),
        (torch.ones(3, dtype=torch.bfloat16), "float32 or float64"),
        (torch.tensor([0.0, math.nan, 1.0]), "finite coefficients"),
        (torch.tensor([0.0, -math.inf, 1.0]), "finite coefficients"),
        (torch.full((3,), 2.0**96), "below 2\\^96"),
    ],
)
def test_coefficients_that_do_not_fit_are_refused_before_anything_is_written(family, coefficients, message):
    out = torch.zeros(10)
    with pytest.raises(ValueError, match=message):
        make(family, 0, 3).axpy_(out, NAME, coefficients)
    assert not out.any()


@every_family
def test_tensors_that_do_not_fit_are_refused(family):
    z, ones = make(family, 0, 3), torch.ones(3)
    for out in (torch.zeros(4, dtype=torch.bfloat16), torch.zeros(4, dtype=torch.float64), torch.zeros(3, 4).t()):
        with pytest.raises(ValueError, match="contiguous float32"):
            z.axpy_(out, NAME, ones)
        with pytest.raises(ValueError, match="contiguous float32"):
            z.add_(out, NAME, 0, 1.0)
    with pytest.raises(ValueError, match="expected float32"):
        z.dot(torch.zeros(4, dtype=torch.float16), NAME)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="finite values"):
            z.dot(torch.tensor([1.0, bad]), NAME)


@every_family
def test_places_that_do_not_exist_are_refused(family):
    z = make(family, 0, 3)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=r"a direction in 0 \.\. 2"):
            z.direction(NAME, index, (4,))
        with pytest.raises(ValueError, match=r"a direction in 0 \.\. 2"):
            z.add_(torch.zeros(4), NAME, index, 1.0)
    for call in (
        lambda: z.direction(NAME, 0, (4,), start=-1),
        lambda: z.add_(torch.zeros(4), NAME, 0, 1.0, start=-1),
        lambda: z.axpy_(torch.zeros(4), NAME, torch.ones(3), start=-1),
        lambda: z.dot(torch.ones(4), NAME, start=-1),
    ):
        with pytest.raises(ValueError, match="start >= 0"):
            call()


@every_family
@pytest.mark.parametrize("alpha", [math.nan, math.inf, 1e39])
def test_an_alpha_that_is_no_float32_is_refused(family, alpha):
    with pytest.raises(ValueError, match="finite alpha"):
        make(family, 0, 3).add_(torch.zeros(4), NAME, 0, alpha)


@exact_families
def test_a_scale_too_small_for_the_values_is_refused(family):
    with pytest.raises(ValueError, match=r"scale exponent in 2 \.\. 128, got 1"):
        make(family, 0, 3).dot(torch.tensor([3.0]), NAME, scale_exponent=1)


def test_the_exponent_bounds_every_value_of_a_tensor():
    assert exponent(torch.tensor([0.0, -4.0])) == 3
    assert exponent(torch.tensor([3.99])) == 2
    assert exponent(torch.zeros(5)) == -104
    assert exponent(torch.zeros(0)) == -104
    assert exponent(torch.tensor([3.0e38, -3.0e38])) == 128
