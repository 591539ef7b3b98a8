"""Batches of examples: padding, and the order in which rows are drawn."""

import pytest
import torch

from fedft.data import batches
from fedft.data.examples import IGNORED, Example
from fedft.errors import DataError

EXAMPLES = [Example([10 + i] * (1 + i % 3), [IGNORED] * (i % 3) + [10 + i], i % 3) for i in range(7)]


def test_padding_is_neither_attended_to_nor_learned():
    batch = batches.collate(EXAMPLES[:3], pad_id=9)
    assert batch["input_ids"].tolist() == [[10, 9, 9], [11, 11, 9], [12, 12, 12]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[10, IGNORED, IGNORED], [IGNORED, 11, IGNORED], [IGNORED, IGNORED, 12]]
    assert batches.collate([Example([5], 2, 1), Example([5, 6], 0, 2)], 0)["labels"].tolist() == [2, 0]
    assert {t.dtype for t in batch.values()} == {torch.int64}


def drawn(n, size, steps, seed=3):
    found = batches.batches(EXAMPLES[:n], batch_size=size, steps=steps, seed=seed, pad_id=0)
    return [batch["input_ids"][:, 0].tolist() for batch in found]


def test_batches_depend_on_the_seed_and_on_no_global_generator():
    before = torch.random.get_rng_state()
    first = drawn(7, 2, 9)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert drawn(7, 2, 9) == first
    assert drawn(7, 2, 9, seed=4) != first


def test_every_row_comes_once_per_shuffle_and_batches_are_full():
    rows = [row for batch in drawn(7, 2, 7) for row in batch]
    assert sorted(rows[:7]) == sorted(rows[7:]) == list(range(10, 17))
    assert rows[:7] != rows[7:]


def test_a_client_with_few_rows_gives_all_of_them_every_time():
    assert [sorted(batch) for batch in drawn(3, 8, 4)] == [[10, 11, 12]] * 4
    assert drawn(3, 8, 0) == []
    with pytest.raises(DataError, match="no example"):
        drawn(0, 8, 1)
