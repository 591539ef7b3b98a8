"""Numbers along directions that are their client's alone: each upload brings the seed of its directions.

upload    `<name>` float32 [n], one client's numbers; `seed` int32 [2], the 64-bit seed, low word first
round     `<name>` float32 [clients, n], row k is p_k times client k's numbers; `seed` int32 [clients, 2]
model     the sum over clients of Z(seed_k) row_k: the p_k-mean of what each of them meant
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.randomness import philox
from fedft.update import TensorSpec, Update
from fedft.wire.body import MAX_ENTRIES

SEED = "seed"
SPEC = TensorSpec((2,), "int32")


def spec_of_round(name: str, columns: int) -> dict[str, TensorSpec]:
    """What a round has, of however many clients with at most so many numbers each."""
    return {
        name: TensorSpec((MAX_ENTRIES, columns), at_most=True),
        SEED: TensorSpec((MAX_ENTRIES, *SPEC.shape), SPEC.dtype, at_most=True),
    }


def seed_of(update: Update) -> int:
    """The seed of an update's directions, 0 .. 2^64 - 1."""
    return philox.key_of_words(update.delta[SEED])


def rows(updates: Iterable[Update], name: str) -> dict[str, Tensor]:
    """A round of uploads, in their order; rows that are shorter than others end in zeros.

    Raises ValueError where there are no updates.
    """
    sent = [(u.delta, u.num_examples) for u in updates]
    if not sent:
        raise ValueError("expected at least one update, got none")
    total = sum(n for _, n in sent)
    weighted = [(n / total * delta[name].double()).float() for delta, n in sent]
    padded = torch.nn.utils.rnn.pad_sequence(weighted, batch_first=True)
    return {name: padded, SEED: torch.stack([delta[SEED] for delta, _ in sent])}


def each(told: Tensors, name: str) -> Iterator[tuple[int, Tensor]]:
    """(seed, row) of every client of a round."""
    for words, row in zip(told[SEED], told[name], strict=True):
        yield philox.key_of_words(words), row
