"""Philox-4x32-10 against its published answers, and the addressing built on it."""

import hashlib

import pytest
import torch

from fedft.randomness import philox

ONES = 0xFFFFFFFF
KNOWN_ANSWERS = [  # counter, key, output: published with the generator (zeros, ones, digits of pi)
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_the_published_answers_come_out_of_integers_and_of_tensors(counter, key, output):
    assert philox.philox4x32(counter, key) == output
    as_tensors = [torch.tensor([word, word]) for word in (*counter, *key)]
    found = philox.philox4x32(tuple(as_tensors[:4]), tuple(as_tensors[4:]))
    assert [word.tolist() for word in found] == [[word, word] for word in output]


def test_words_sit_where_the_counter_says():
    """Block c of a stream is Philox at (c low, c high, tensor id, purpose), also beyond 2^32 blocks."""
    key, name_id, first = (9 << 32) + 8, 77, (1 << 32) - 2
    found = philox.words(key, 3, name_id, first, 4, "cpu")
    expected = [philox.philox4x32((c % (1 << 32), c >> 32, name_id, 3), (8, 9)) for c in range(first, first + 4)]
    assert found.dtype == torch.int64
    assert [tuple(row) for row in found.tolist()] == expected


def test_blocks_are_the_same_however_they_are_asked_for():
    whole = philox.words(5, philox.MASK, 1, 0, 100)
    parts = [philox.words(5, philox.MASK, 1, first, 10) for first in range(0, 100, 10)]
    assert torch.equal(whole, torch.cat(parts))


def test_many_blocks_are_those_of_the_tensor_arithmetic_that_other_devices_use():
    """On the CPU they are made in pieces of 4096."""
    first, count = (1 << 32) - 5000, 10_001
    index = torch.arange(first, first + count)
    key = philox.split_key((1 << 64) - 3)
    words = philox.philox4x32((index & philox.MASK32, index >> 32, philox.MASK32, philox.LORA_INIT), key)
    found = philox.words((1 << 64) - 3, philox.LORA_INIT, philox.MASK32, first, count)
    assert torch.equal(found, torch.stack(words, dim=-1))


def test_keys_purposes_and_names_open_different_streams():
    streams = [philox.words(*place, 0, 4).flatten().tolist() for place in ((0, 1, 1), (1, 1, 1), (0, 2, 1), (0, 1, 2))]
    assert len({word for stream in streams for word in stream}) == 4 * 16


def test_a_tensor_is_known_by_the_first_four_bytes_of_a_hash_of_its_name():
    assert philox.tensor_id("layers.0.q.weight") == 1996391997
    assert philox.tensor_id("µ") == int.from_bytes(hashlib.blake2b("µ".encode()).digest()[:4], "little")


@pytest.mark.parametrize("key", [-1, 1 << 64])
def test_a_key_beyond_64_bits_is_refused(key):
    with pytest.raises(ValueError, match="expected a seed in"):
        philox.words(key, 1, 0, 0, 1)


def test_uniform_numbers_are_the_top_24_bits_of_one_word_each():
    found = philox.uniform(7, philox.LORA_INIT, "layers.0.q.weight", (3, 5))
    words = philox.words(7, philox.LORA_INIT, philox.tensor_id("layers.0.q.weight"), 0, 4).flatten().tolist()
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == [(word >> 8) / 2**24 for word in words[:15]]


def test_uniform_numbers_fill_the_unit_interval_evenly():
    found = philox.uniform(0, philox.LORA_INIT, "a", (200_000,))
    assert found.min() >= 0
    assert found.max() < 1
    assert abs(found.mean().item() - 1 / 2) < 4 * (1 / 12 / 200_000) ** 0.5
    assert abs(found.double().var().item() - 1 / 12) < 4 * (1 / 180 / 200_000) ** 0.5


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,)])
def test_uniform_numbers_come_in_any_shape(shape):
    assert philox.uniform(0, philox.LORA_INIT, "a", shape).shape == shape


def test_derived_seeds_are_frozen():
    assert philox.derive(0, "batches", 3, "clinic") == 8911966770584832232
    assert philox.derive(0, "a") == 1482964730208191534


def test_derived_seeds_differ_whenever_the_arguments_do():
    arguments = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 1),
        (0, "a", "1"),
        (0, "a", -1),
        (0, "a", "s", "t"),
        (0, "as", "t"),
    ]
    arguments += [(0, "a", "st"), (0, "a", "st", ""), (0, "a", "", "st"), (0, "a", 1, 2), (0, "a", 12), (1 << 80, "a")]
    seeds = [philox.derive(*each) for each in arguments]
    assert len(set(seeds)) == len(arguments)
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here to compare with the CPU")
def test_a_gpu_gives_the_same_numbers():
    on_gpu = philox.words(5, 1, 2, (1 << 32) - 50, 100, "cuda")
    assert torch.equal(on_gpu.cpu(), philox.words(5, 1, 2, (1 << 32) - 50, 100))
