"""Packed batches: every row once, whole, with its own positions and labels, in sequences that are short enough."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedft import run_file, strategies
from fedft.data import packing
from fedft.data.examples import IGNORED, Example
from fedft.errors import ConfigError
from fedft.training import objectives

PAD = 999


def example(length: int, given_: int, start: int = 1) -> Example:
    ids = list(range(start, start + length))
    return Example(ids, [IGNORED] * given_ + ids[given_:], given_)


rows = some.lists(some.integers(1, 12).flatmap(lambda n: some.tuples(some.just(n), some.integers(0, n))), min_size=1)


@given(rows=rows, room=some.integers(12, 40))
def test_every_row_is_there_once_with_its_positions_and_labels(rows, room):
    examples = [example(length, given_, 20 * k + 1) for k, (length, given_) in enumerate(rows)]
    batch = packing.collate(examples, PAD, room)
    assert {x.shape for x in batch.values()} == {batch["labels"].shape}
    assert batch["labels"].shape[1] <= room
    found = []
    for ids, positions, labels in zip(
        *(batch[n].tolist() for n in ("input_ids", "position_ids", "labels")), strict=True
    ):
        starts = [t for t, p in enumerate(positions) if p == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            assert positions[start:end] == list(range(end - start))
            if ids[start] == PAD:
                assert set(ids[start:]) == {PAD}
                assert set(labels[start:]) == {IGNORED}
            else:
                found.append((ids[start:end], labels[start:end]))
    wanted = [(e.input_ids, [IGNORED, *e.labels[1:]]) for e in examples]
    assert sorted(found) == sorted(wanted)
    assert int((batch["labels"] != IGNORED).sum()) == sum(e.learned for e in examples)


@given(lengths=some.lists(some.integers(1, 30), min_size=1), room=some.integers(30, 60))
def test_a_row_lies_in_the_first_sequence_that_has_room(lengths, room):
    sequences = packing.first_fit(lengths, room)
    assert sorted(n for s in sequences for n in s) == list(range(len(lengths)))
    place = {n: k for k, s in enumerate(sequences) for n in s}
    for n, length in enumerate(lengths):
        before = [sum(lengths[i] for i in s if i < n) for s in sequences]
        assert before[place[n]] + length <= room
        assert all(full + length > room for full in before[: place[n]])
    assert packing.first_fit(lengths, room) == sequences


def test_the_last_token_of_a_row_does_not_learn_the_first_of_the_next():
    batch = packing.collate([example(3, 0), example(4, 0, 11)], PAD, 8)
    assert objectives.next_tokens(batch["labels"]).tolist() == [[2, 3, IGNORED, 12, 13, 14, IGNORED]]


@pytest.mark.parametrize(
    "tables",
    [
        {"local": {"objective": "dpo"}},
        {"local": {"objective": {"name": "orpo", "beta": 0.2}}},
        {"model": {"task": "sequence-classification", "labels": ["a", "b"]}},
    ],
)
def test_what_has_other_batches_is_refused_before_a_model_is_loaded(tables):
    config = run_file.from_dict({**tables, "strategy": {"name": "fedit"}})
    strategies.of(config)
    packed = run_file.from_dict({**tables, "local": {**tables.get("local", {}), "packing": True}})
    with pytest.raises(ConfigError, match=r"\[local\] packing .* packing = false would do"):
        strategies.of(packed)


@given(lengths=some.lists(some.integers(1, 12), min_size=1), room=some.integers(12, 40))
def test_a_batch_is_never_larger_than_a_padded_one(lengths, room):
    sequences = packing.laid(lengths, room)
    size = len(sequences) * packing.fullest(sequences, lengths)
    assert size <= len(lengths) * max(lengths)
    assert size <= len(packing.first_fit(lengths, room)) * packing.fullest(packing.first_fit(lengths, room), lengths)
    assert packing.fullest(sequences, lengths) <= room


def test_short_rows_fill_sequences_up():
    lengths = [10 + 37 * k % 190 for k in range(16)]
    sequences = packing.laid(lengths, 256)
    size = len(sequences) * packing.fullest(sequences, lengths)
    assert sum(lengths) <= size < 1.15 * sum(lengths)
    assert 16 * max(lengths) > 1.5 * size
