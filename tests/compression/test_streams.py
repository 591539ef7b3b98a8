"""Streams by constriction and by what numba compiles: the same words, the same symbols, the same refusals."""

import logging
from importlib.util import find_spec

import numpy as np
import pytest

from fedft.compression import entropy_coder, streams

TOTAL = 1 << 24
needs_numba = pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed: nothing to compile with")


@pytest.fixture
def kernels():
    return streams._loaded()


def frequencies(rng: np.random.Generator, a: int, kind: str) -> np.ndarray:
    """Of a symbols, each at least 1: alike, one of them nearly everything, or many of 1 and none above a half."""
    f = 1 + (rng.random(a) ** 4 * (TOTAL / a / 2)).astype(np.int64)
    if kind != "alike":
        f[:] = 1
    if kind == "tails":
        f[: max(2, a // 4)] = TOTAL // max(3, a // 4 + 1)
    f[rng.integers(a)] += TOTAL - f.sum()
    return f


CASES = [(a, n, kind) for a in (2, 3, 23, 255) for n in (1, 2, 40, 5000) for kind in ("alike", "lopsided", "tails")]


@needs_numba
@pytest.mark.parametrize(("a", "n", "kind"), CASES)
def test_words_and_symbols_are_those_of_constriction(kernels, a, n, kind):
    rng = np.random.default_rng(a * n)
    f = frequencies(rng, a, kind)
    often = rng.choice(a, n, p=f / f.sum()).astype(np.int32)
    for symbols in (often, rng.integers(0, a, n).astype(np.int32), np.full(n, f.argmax(), np.int32)):
        words = streams._put(symbols, f)
        assert kernels.put(symbols, f).tolist() == words.tolist()
        assert kernels.get(words, n, f).tolist() == symbols.tolist()


@needs_numba
def test_a_frequency_on_either_side_of_a_half(kernels):
    """2^23 is where products take over from divisions."""
    rng = np.random.default_rng(0)
    for half in ((1 << 23) - 1, 1 << 23, (1 << 23) + 1):
        f = np.array([half, TOTAL - half - 1, 1], np.int64)
        symbols = rng.integers(0, 3, 4000).astype(np.int32)
        assert kernels.put(symbols, f).tolist() == streams._put(symbols, f).tolist()


@needs_numba
def test_whatever_the_words_both_read_the_same_or_refuse(kernels):
    rng = np.random.default_rng(3)
    refused = 0
    for k in range(300):
        a, n = int(rng.integers(2, 30)), int(rng.integers(1, 60))
        f = frequencies(rng, a, ("alike", "lopsided", "tails")[k % 3])
        words = streams._put(rng.integers(0, a, n).astype(np.int32), f)
        if k % 2 and len(words):
            words[rng.integers(len(words))] ^= np.uint32(1 << int(rng.integers(32)))
        elif k % 4 == 0:
            words = rng.integers(0, 1 << 32, int(rng.integers(0, 9)), dtype=np.uint64).astype(np.uint32)
        try:
            want = streams._get(words, n, f).tolist()
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match="stream"):
                kernels.get(words, n, f)
        else:
            assert kernels.get(words, n, f).tolist() == want
    assert 50 < refused < 250


@needs_numba
def test_a_last_word_of_zero_is_refused_by_both(kernels):
    f, words = np.array([TOTAL - 1, 1], np.int64), np.array([5, 0], np.uint32)
    for get in (streams._get, kernels.get):
        with pytest.raises(ValueError):  # noqa: PT011  (constriction has its own words)
            get(words, 3, f)


@needs_numba
@pytest.mark.parametrize("way", ["torch", "numba"])
def test_the_environment_decides_who_works(monkeypatch, way):
    monkeypatch.setenv("FEDFT_KERNELS", way)
    asked = []
    before = streams._loaded()
    monkeypatch.setattr(streams, "_loaded", lambda: (asked.append(way), before)[1])
    q = np.random.default_rng(0).normal(0, 2, 4000).round().astype(np.int32)
    data = entropy_coder.put_symbols(q)
    got = entropy_coder.get_symbols(entropy_coder.Reader(memoryview(data)), len(q))
    assert got.tolist() == q.tolist()
    assert asked == ([] if way == "torch" else ["numba", "numba"])


def test_streams_that_are_wrong_are_said_once_and_left_alone(monkeypatch, caplog):
    class Wrong:
        @staticmethod
        def put(symbols, f):
            return np.zeros(0, np.uint32)

    for name in ("_loaded", "_trusted"):
        monkeypatch.setattr(streams, name, getattr(streams, name).__wrapped__)
    monkeypatch.setattr(streams, "import_module", lambda name: Wrong)
    monkeypatch.setattr(streams.compiled, "library", lambda x, cost: "numba")
    monkeypatch.delenv("FEDFT_KERNELS", raising=False)
    f = np.array([TOTAL - 1, 1], np.int64)
    with caplog.at_level(logging.WARNING):
        assert (
            streams.put(np.array([0, 1], np.int32), f).tolist() == streams._put(np.array([0, 1], np.int32), f).tolist()
        )
    (record,) = caplog.records
    assert "constriction does their work" in record.message
    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    with pytest.raises(RuntimeError, match="other words"):
        streams.put(np.array([0, 1], np.int32), f)
