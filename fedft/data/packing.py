"""Rows of a batch laid one behind the other into few sequences, in place of padding each to the longest of them.

    rows of 5, 3, 2 and 4 tokens, at most 8 a sequence      aaaaabbb        positions 01234012
                                                            ccdddd__                  01012301

Positions begin again with every row, and there is no mask: from such positions a model sees that no row attends to
another (`fedft.models.packed_rows` says which models do). What is learned, and after what, is as in a padded batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fedft.config import Data, Local
from fedft.contract import Batch, Objective
from fedft.data.examples import IGNORED, Example


def collating(objective: Objective, local: Local, data: Data, pad_id: int) -> Callable[[Sequence[Any]], Batch]:
    """What makes a batch of rows: the objective, or `collate` where `[local] packing` says so.

    `data`: of a run that has begun, in which `max_length` is a number.
    """
    if local.packing:
        return partial(collate, pad_id=pad_id, max_length=data.length)
    return partial(objective.collate, pad_id=pad_id)


def collate(examples: Sequence[Example], pad_id: int, max_length: int) -> dict[str, Tensor]:
    """One batch of examples in few sequences, at most as many tokens as a padded batch has; see `laid` and `batch_of`.

    Args:
        examples: of tokens to learn, none longer than `max_length`; not modified.
        pad_id: the token id that fills the ends of sequences up.
        max_length: tokens of a sequence at most.
    Returns:
        input_ids, position_ids, labels: int64 [S, T].
    """
    return batch_of(examples, laid([len(e.input_ids) for e in examples], max_length), pad_id)


def batch_of(examples: Sequence[Example], sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """One batch of examples, laid one behind the other as `sequences` say.

    Args:
        examples: of tokens to learn; not modified.
        sequences: numbers of examples, sequence by sequence.
        pad_id: the token id that fills the ends of sequences up, as one more row of which nothing is learned.
    Returns:
        input_ids, position_ids, labels: int64 [S, T], T being the length of the fullest of the S sequences. The label
        of a row's first token is IGNORED: in a padded batch nothing stands before it that could predict it.

    >>> rows = [Example([5, 6, 7], [5, 6, 7], 0), Example([8, 9], [IGNORED, 9], 1), Example([4], [4], 0)]
    >>> batch = batch_of(rows, [[0, 2], [1]], pad_id=0)
    >>> batch["input_ids"].tolist(), batch["position_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7, 4], [8, 9, 0, 0]], [[0, 1, 2, 0], [0, 1, 0, 1]], [[-100, 6, 7, -100], [-100, 9, -100, -100]])
    """
    longest = fullest(sequences, [len(e.input_ids) for e in examples])
    ids, positions, labels = [], [], []
    for rows in ([examples[n] for n in numbers] for numbers in sequences):
        learned = [e.labels for e in rows if not isinstance(e.labels, int)]
        assert len(learned) == len(rows), "a class is no token"
        lengths = [len(row) for row in learned]
        rest = longest - sum(lengths)
        ids.append([*chain.from_iterable(e.input_ids for e in rows), *[pad_id] * rest])
        positions.append([*chain.from_iterable(range(length) for length in (*lengths, rest))])
        labels.append([*chain.from_iterable([IGNORED, *row[1:]] for row in learned), *[IGNORED] * rest])
    return {name: torch.tensor(x) for name, x in (("input_ids", ids), ("position_ids", positions), ("labels", labels))}


def laid(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """The numbers of rows of these lengths, sequence by sequence, so that few tokens are padding.

    Sequences as long as the longest row, twice as long and so on up to `max_length` are tried; of those that take the
    fewest tokens the shortest are taken, in which attention costs least.

    >>> laid([5, 3, 2, 5], max_length=14), laid([5, 3, 3, 3], max_length=14)
    ([[0], [1, 2], [3]], [[0, 1, 2, 3]])
    """
    rooms = [room := max(lengths)]
    while (room := 2 * room) <= max_length:
        rooms.append(room)
    tried = [first_fit(lengths, room) for room in (*rooms, max(max_length, rooms[0]))]
    return min(tried, key=lambda sequences: len(sequences) * fullest(sequences, lengths))


def fullest(sequences: Sequence[Sequence[int]], lengths: Sequence[int]) -> int:
    """The tokens of the fullest of some sequences of rows of these lengths."""
    return max(sum(lengths[n] for n in rows) for rows in sequences)


def first_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """The numbers of rows of these lengths, sequence by sequence: each in the first that has room for it, in order.

    A row longer than `room` has a sequence to itself.

    >>> first_fit([5, 3, 2, 4], room=8)
    [[0, 1], [2, 3]]
    """
    sequences: list[list[int]] = []
    left: list[int] = []
    for n, length in enumerate(lengths):
        at = next((k for k, free in enumerate(left) if length <= free), None)
        if at is None:
            sequences.append([n])
            left.append(room - length)
        else:
            sequences[at].append(n)
            left[at] -= length
    return sequences
