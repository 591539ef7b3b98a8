"""Fixed point and masks: unbiased, repeatable, exact in any order; a masked vector looks like noise."""

import os

import numpy as np
import pytest
from secure_blocks import begun, set_up, spec, total, vectors

from fedft.privacy.secure_sum import ring
from fedft.privacy.secure_sum.context import Spec

TWO = Spec(12, (0.5, 4.0), 16, (("a", (2, 3)), ("b", (5,))))


def test_rounding_is_unbiased_and_follows_from_the_seed() -> None:
    x = {"w": np.full(200_000, 0.123456)}
    wide = spec(200_000, bits=8)
    q, cut = ring.quantised(x, wide, 7)
    assert cut == 0
    assert np.unique(q).tolist() == [15, 16]
    assert abs(q.mean() - 0.123456 * 127) < 5 * 0.5 / np.sqrt(len(q))
    assert (q == ring.quantised(x, wide, 7)[0]).all()
    assert (q != ring.quantised(x, wide, 8)[0]).any()


def test_each_tensor_has_its_own_range_and_what_is_beyond_is_counted() -> None:
    x = {"b": np.array([4.0, -4.0, 9.0, -1e30, 0.0]), "a": np.full((2, 3), 0.25, np.float32)}
    q, cut = ring.quantised(x, TWO, 1)
    assert q[6:].tolist() == [2047, -2047, 2047, -2047, 0]
    assert cut == 2
    found = ring.mean(q.astype(np.int64) * 3, TWO, 3)
    assert found["a"].shape == (2, 3)
    assert np.abs(found["a"] - 0.25).max() <= 0.5 / 2047
    assert found["b"].tolist() == pytest.approx([4.0, -4.0, 4.0, -4.0, 0.0], rel=1e-15)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_or_of_another_shape_is_refused(value: float) -> None:
    good = {"a": np.zeros((2, 3)), "b": np.zeros(5)}
    with pytest.raises(ValueError, match="b has entries that are not finite"):
        ring.quantised({**good, "b": np.array([0, 0, value, 0, 0])}, TWO, 1)
    for bad in ({"a": good["a"]}, {**good, "b": np.zeros((5, 1))}, {**good, "c": np.zeros(1)}):
        with pytest.raises(ValueError, match="a secure sum of"):
            ring.quantised(bad, TWO, 1)


def test_the_error_of_a_mean_is_what_the_step_says() -> None:
    """step / sqrt(6 n): rounding at random has variance f (1 - f) step^2, 1/6 on average."""
    rng, n, wide = np.random.default_rng(0), 20, spec(20_000, bits=11)
    x = {str(k): rng.uniform(-1, 1, 20_000) for k in range(n)}
    q = {k: ring.quantised({"w": v}, wide, int(k))[0] for k, v in x.items()}
    error = ring.mean(ring.clear_sum(q), wide, n)["w"] - np.mean([*x.values()], axis=0)
    assert np.sqrt((error**2).mean()) == pytest.approx(1 / 1023 / np.sqrt(6 * n), rel=0.03)


@pytest.mark.parametrize(("bits", "width"), [(24, 32), (11, 16)])
def test_masks_cancel_whatever_the_length(bits: int, width: int) -> None:
    """Also longer than the piece of a key stream that is made at once."""
    for length in (1, 7, 65_536, 150_001):
        y = np.arange(length).astype(ring.word(width))
        before, keys = y.copy(), [os.urandom(32) for _ in range(3)]
        ring.add_masks(y, [(k, False) for k in keys])
        assert length < 7 or (y != before).any()
        ring.add_masks(y, [(k, True) for k in reversed(keys)])
        assert (y == before).all()


def test_one_key_stream_in_pieces_is_the_key_stream() -> None:
    key, long = os.urandom(32), np.zeros(200_000, np.uint32)
    ring.add_masks(long, [(key, False)])
    for length in (5, 65_536, 131_073):
        short = np.zeros(length, np.uint32)
        ring.add_masks(short, [(key, False)])
        assert (short == long[:length]).all()


def test_centred_integers() -> None:
    assert ring.centred(np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.uint32)).tolist() == [
        0, 1, 2**31 - 1, -(2**31), -1,
    ]  # fmt: skip
    assert ring.centred(np.array([40_000], np.uint16)).tolist() == [40_000 - 65_536]


@pytest.mark.parametrize("width", [32, 16])
def test_masked_zeros_look_like_noise(width: int) -> None:
    """Chi-square of the bytes, 255 degrees of freedom: within 6 standard deviations; and so is every single site's."""
    wanted = spec(50_000, 24 if width == 32 else 11, width)
    sites = set_up(begun(4, wanted))
    zeros = dict.fromkeys(sites.members, np.zeros(wanted.length, np.int32))
    for y in sites.masked(0, zeros).values():
        counts = np.bincount(np.frombuffer(y.tobytes(), np.uint8), minlength=256)
        chi = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert abs(chi - 255) < 6 * np.sqrt(2 * 255)


@pytest.mark.parametrize(("bits", "width"), [(24, 32), (11, 16), (2, 16)])
def test_with_masks_and_without_the_sum_is_the_same(bits: int, width: int) -> None:
    wanted = spec(33, bits, width)
    sites = set_up(begun(5, wanted))
    q = vectors(sites.members, wanted)
    assert (sites.sum(0, q) == ring.clear_sum(q)).all()
    assert (ring.clear_sum(q) == total(q)).all()


def test_extremes_of_every_client_fit() -> None:
    wanted = spec(6, 11, 16)
    sites = set_up(begun(31, wanted))
    q = {name: np.array([1023, -1023] * 3, np.int32) for name in sites.members}
    assert sites.sum(0, q).tolist() == [31 * 1023, -31 * 1023] * 3
