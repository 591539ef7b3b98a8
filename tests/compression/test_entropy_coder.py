"""Integers come back as they went in, in about as many bits as their entropy; whatever else is refused."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedft.compression import bit_packing, entropy_coder
from fedft.compression.bit_packing import Reader
from fedft.compression.entropy_coder import bits_per_place

few = settings(derandomize=True, max_examples=100, deadline=None)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def there_and_back(data: bytes, read, *args):
    r = Reader(memoryview(data))
    out = read(r, *args)
    r.close()
    return out.tolist()


def a_support(d: int, share: float, seed: int = 0) -> np.ndarray:
    return np.sort(rng(seed).choice(d, round(share * d), replace=False))


# What goes in comes out


@few
@given(st.lists(st.integers(-127, 127), max_size=200), st.sampled_from([1, 3, 20, 127]))
def test_symbols_come_back(values, m):
    q = np.array([max(-m, min(m, v)) for v in values], np.int32)
    assert there_and_back(entropy_coder.put_symbols(q), entropy_coder.get_symbols, len(q)) == q.tolist()


@few
@given(st.integers(1, 400).flatmap(lambda d: st.tuples(st.just(d), st.sets(st.integers(0, d - 1)))))
def test_supports_come_back(case):
    d, places = case
    index = np.array(sorted(places), np.int64)
    data = entropy_coder.put_support(index, d)
    assert there_and_back(data, entropy_coder.get_support, d, len(index)) == index.tolist()
    assert len(data) <= 4 + (d + 7) // 8


@few
@given(st.lists(st.integers(0, 65535), max_size=100), st.booleans())
def test_numbers_come_back_and_take_no_more_than_themselves(values, ascending):
    x = np.array(sorted(set(values)) if ascending else values, np.uint16)
    data = entropy_coder.put_numbers(x)
    assert there_and_back(data, entropy_coder.get_numbers, len(x)) == x.tolist()
    assert len(data) <= 1 + 2 * len(x)


@few
@given(st.integers(0, 2**35 - 1), st.integers(0, 24), st.lists(st.integers(0, 2**24 - 1), max_size=20))
def test_varints_and_fields_come_back(n, width, values):
    assert Reader(memoryview(bit_packing.varint(n))).varint() == n
    x = np.array([v & ((1 << width) - 1) for v in values], np.int64)
    data = bit_packing.put_fields(x, width)
    assert len(data) == (width * len(x) + 7) // 8
    assert there_and_back(data, bit_packing.get_fields, len(x), width) == x.tolist()


@pytest.mark.parametrize("share", [0.5, 0.2, 0.05, 0.01, 0.001])
@pytest.mark.parametrize("d", [10_000, 200_000])
def test_a_random_support_takes_2_percent_more_than_its_entropy(share, d):
    index = a_support(d, share)
    data = entropy_coder.put_support(index, d)
    assert there_and_back(data, entropy_coder.get_support, d, len(index)) == index.tolist()
    assert len(data) <= 1.025 * d * bits_per_place(share) / 8 + 12


def test_a_support_in_one_piece_takes_less_than_a_random_one():
    piece, scattered = np.arange(5000, 6000), a_support(10_000, 0.1)
    assert len(entropy_coder.put_support(piece, 10_000)) < len(entropy_coder.put_support(scattered, 10_000))


@pytest.mark.parametrize("step", [0.3, 0.46, 1.5, 4.0])
@pytest.mark.parametrize("n", [5000, 100_000])
def test_symbols_take_2_percent_more_than_their_entropy(step, n):
    q = np.rint(rng().standard_normal(n) / step).astype(np.int32)
    p = np.unique(q, return_counts=True)[1] / n
    assert len(entropy_coder.put_symbols(q)) * 8 <= 1.02 * n * -(p * np.log2(p)).sum() + 8 * 40


def test_lopsided_symbols_get_a_lopsided_table():
    q = rng().geometric(0.4, 20_000).astype(np.int32).clip(max=60)
    data = entropy_coder.put_symbols(q)
    p = np.unique(q, return_counts=True)[1] / len(q)
    assert there_and_back(data, entropy_coder.get_symbols, len(q)) == q.tolist()
    assert len(data) * 8 <= 1.02 * len(q) * -(p * np.log2(p)).sum() + 8 * 130


def test_uniform_symbols_are_packed():
    q = rng().integers(-7, 8, 1000).astype(np.int32)
    assert len(entropy_coder.put_symbols(q)) == 1 + 500


def test_200_numbers_of_4096_take_less_than_half_of_two_bytes_each():
    data = entropy_coder.put_numbers(a_support(4096, 200 / 4096).astype(np.uint16))
    assert len(data) < 0.4 * 400


# The format: these bytes do not change


def test_known_bytes():
    assert bit_packing.varint(300) == b"\xac\x02"
    assert entropy_coder.put_symbols(np.zeros(9, np.int32)) == b"\0"
    assert entropy_coder.put_symbols(np.array([1, -1, 0, 1], np.int32)).hex() == "0286"  # 10 00 01 10
    assert entropy_coder.put_support(np.array([3, 4, 9]), 10).hex() == "03011840"
    assert entropy_coder.put_support(np.array([5, 1000]), 4096).hex() == "0202" + "08" + "03" + "702f10"
    assert entropy_coder.put_numbers(np.array([2, 1, 3], np.uint16)).hex() == "029c"


def decode_by_hand(words: list[int], frequencies: tuple[int, ...], n: int) -> tuple[list[int], int, list[int]]:
    """The stream's lines of the docstring, with Python's integers."""
    x = words.pop() if words else 0
    if words:
        x = x << 32 | words.pop()
    out = []
    for _ in range(n):
        r, c, symbol = x % 2**24, 0, 0
        while not c <= r < c + frequencies[symbol]:
            c += frequencies[symbol]
            symbol += 1
        out.append(symbol)
        x = frequencies[symbol] * (x >> 24) + r - c
        if x < 2**32 and words:
            x = x << 32 | words.pop()
    return out, x, words


@pytest.mark.parametrize("frequencies", [(2**24 - 1, 1), (2**23, 2**23), (1, 2**24 - 3, 1, 1), (5_000_000, 11_777_216)])
def test_a_stream_is_read_by_hand(frequencies):
    """So the format depends on no library: its coder is given frequencies that it has nothing to round of."""
    p = np.array(frequencies) / 2**24
    symbols = rng(1).choice(len(p), 500, p=p).astype(np.int32)
    symbols[:3] = len(p) - 1, 0, len(p) - 1
    data = entropy_coder._put_stream(symbols, np.array(frequencies))
    r = Reader(memoryview(data))
    words = np.frombuffer(r.take(4 * r.varint()), "<u4").tolist()
    assert decode_by_hand(words, frequencies, 500) == (symbols.tolist(), 0, [])


@few
@given(st.lists(st.integers(0, 192), min_size=1, max_size=255))
def test_frequencies_add_up_whatever_the_table(sizes):
    f = entropy_coder._frequencies(sizes).tolist()
    assert sum(f) == 2**24
    assert min(f) >= 1
    assert all(a <= b for (s, a), (t, b) in zip(*[sorted(zip(sizes, f, strict=True))] * 2, strict=True) if s <= t)


def test_weights_are_eighth_octaves_rounded_down():
    w = entropy_coder._weights()
    assert all(x**8 <= 2**s < (x + 1) ** 8 for s, x in enumerate(w.tolist()))


# What is refused

READERS = {
    "symbols": lambda r: entropy_coder.get_symbols(r, 12),
    "support": lambda r: entropy_coder.get_support(r, 100, 20),
    "numbers": lambda r: entropy_coder.get_numbers(r, 12),
}
BAD = {
    "no bytes": ("symbols", ""),
    "an unknown form of symbols": ("symbols", "13"),
    "fields cut short": ("symbols", "04" + "77" * 5),
    "a symbol of 128": ("symbols", "08" + "ff" * 12),
    "a table for 0": ("symbols", "1000"),
    "a table up to 200": ("symbols", "10c8" + "00" * 201),
    "a table cut short": ("symbols", "1003ff"),
    "a size of 193": ("symbols", "1001c1c100"),
    "a stream cut short": ("symbols", "1001c0c002" + "01000000"),
    "a stream that ends in zero": ("symbols", "1001c0c001" + "00000000"),
    "a stream with words left": ("symbols", "1001c0c009" + "01020304" * 9),
    "a stream of 2^34 words": ("symbols", "1001c0c0" + "ffffffff7f"),
    "an integer of six bytes": ("support", "ffffffffff01"),
    "an integer longer than needed": ("support", "8000"),
    "more kept than allowed": ("support", "15"),
    "more kept than there are": ("support", "7f"),
    "an unknown form of support": ("support", "0300"),
    "a bitmap cut short": ("support", "0301" + "00" * 12),
    "a bitmap with too few": ("support", "0301" + "80" + "00" * 12),
    "a bitmap with bits behind the last": ("support", "0301" + "c0" + "00" * 11 + "01"),
    "a mask with too few": ("support", "030301" + "01000000"),
    "a gap past the end": ("support", "0102" + "00" + "64" + "ff" * 12 + "f0"),
    "a Rice parameter of 32": ("support", "0102" + "20" + "00" + "00" * 5),
    "quotients cut short": ("support", "0202" + "00" + "40" + "ff" * 4),
    "too few quotients": ("support", "0202" + "00" + "06" + "ff"),
    "gaps that add up to 2^65": ("support", "0202" + "1f" + "ffffffff7f"),
    "a remainder past the end": ("support", "0102" + "07" + "00" + "7f"),
    "numbers of 17 bits": ("numbers", "11" + "00" * 26),
    "numbers of no bits": ("numbers", "00"),
    "numbers cut short": ("numbers", "0a" + "00" * 14),
    "a number of 65,536": ("numbers", "200e" + "0c" + "ff" * 12),
}


@pytest.mark.parametrize("what", BAD)
def test_bytes_out_of_the_format_are_refused(what):
    reader, data = BAD[what]
    with pytest.raises(ValueError):  # noqa: PT011 (each has its own message)
        READERS[reader](Reader(memoryview(bytes.fromhex(data))))


def test_bytes_behind_the_last_are_refused():
    r = Reader(memoryview(b"\x00\x00"))
    entropy_coder.get_symbols(r, 3)
    with pytest.raises(ValueError, match="1 bytes too many"):
        r.close()


@pytest.mark.parametrize("reader", READERS)
def test_whatever_the_bytes_integers_in_their_range_or_a_refusal(reader):
    dice, outcomes = random.Random(reader), set()
    good = {
        "symbols": [entropy_coder.put_symbols(rng(i).integers(-i, i + 1, 12).astype(np.int32)) for i in range(12)],
        "support": [entropy_coder.put_support(a_support(100, k / 100, k), 100) for k in range(20)],
        "numbers": [entropy_coder.put_numbers(a_support(5000, 12 / 5000, i).astype(np.uint16)) for i in range(9)],
    }[reader]
    for _ in range(4000):
        data = bytearray(dice.choice(good))
        for _ in range(dice.choice([1, 1, 2, 4])):
            change = dice.randrange(3)
            if change == 0 and data:
                data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            elif change == 1:
                data.insert(dice.randint(0, len(data)), dice.choice([0, 1, 2, 3, 16, 17, 18, 32, 127, 128, 255]))
            elif data:
                del data[dice.randrange(len(data)) :]
        if dice.random() < 0.3:
            data = bytearray(dice.choice([0, 1, 2, 3, 16, 17, 18, 32]).to_bytes(1, "little") + dice.randbytes(20))
        r = Reader(memoryview(bytes(data)))
        try:
            out = READERS[reader](r)
        except ValueError:
            outcomes.add("refused")
            continue
        outcomes.add("read")
        if reader == "support":
            assert len(out) <= 20
            assert np.all(np.diff(out) > 0)
            assert not len(out) or (out[0] >= 0 and out[-1] < 100)
        else:
            low, high = (-127, 127) if reader == "symbols" else (0, 65535)
            assert len(out) == 12
            assert low <= out.min() <= out.max() <= high
    assert outcomes == {"read", "refused"}


def test_entropy_of_a_place():
    assert bits_per_place(0.5) == 1
    assert bits_per_place(0.0) == bits_per_place(1.0) == 0
    assert math.isclose(bits_per_place(0.1), 0.468995593589281)
