"""What is known of clients' rows before a run: their numbers and lengths, where the files and a tokenizer are here."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedft.config import RunConfig
from fedft.data import client_datasets
from fedft.data.client_datasets import Parts
from fedft.models.load import Base

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """What is known of a client's rows; by default nothing is, and the run file's limits stand for them."""

    longest: int | None = None
    """Tokens of the longest row; None: `[data] max_length`."""
    usual: float | None = None
    """Tokens that a row has in a batch on average, padding among them; None: `longest`."""
    learned: int | None = None
    """Most learned places of a row; None: all but one of its tokens."""
    train: int | None = None
    """How many there are to train on; None: unknown, so `[local] steps` counts."""
    held_out: int | None = None
    """How many an evaluation measures; None: as many as `[eval] batch_size`."""
    padded: bool = True
    """Whether rows of a batch are of unlike length."""

    @classmethod
    def of(cls, train: Sequence[tuple[int, int]], held_out: Sequence[tuple[int, int]], batch: int) -> "Rows":
        """What is to know of rows whose (tokens, learned places) these are, in batches of so many."""
        every, lengths = [*train, *held_out], sorted(length for length, _ in train)
        n = max(1, len(lengths))
        usual = sum(
            x * (((i + 1) / n) ** batch - (i / n) ** batch) for i, x in enumerate(lengths)
        )  # largest of a batch
        return cls(
            max((x for x, _ in every), default=None), usual or None, max((x for _, x in every), default=None),
            len(train), len(held_out), len(set(lengths)) > 1,
        )  # fmt: skip


def encoded(examples: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], config: RunConfig) -> dict[str, Rows]:
    """What is known of rows that are encoded, (train, held out) by client; rows of another form have no length here."""
    batch = config.local.batch_size
    return {name: Rows.of(_sizes(train), _sizes(held), batch) for name, (train, held) in examples.items()}


def of_records(parts: Parts, config: RunConfig, base: Base) -> dict[str, Rows]:
    """What is known of records, (train, held out) by client: all, where the base has a tokenizer; else their numbers.

    Raises DataError for a record that cannot be encoded.
    """
    if base.tokenizer is None:
        log.warning("no tokenizer at %s: every row counts as %d tokens", base.source, config.data.length)
        return {name: Rows(train=len(train), held_out=len(held)) for name, (train, held) in parts.items()}
    return encoded(client_datasets.encode(parts, config, base), config)


def _sizes(rows: Sequence[Any]) -> list[tuple[int, int]]:
    """(tokens, learned places) of each row; of a pair of answers the larger number of each."""
    found = []
    for row in rows:
        both = getattr(row, "both", (row,))
        known = [(len(x.input_ids), x.learned) for x in both if hasattr(x, "input_ids")]
        if known:
            found.append((max(n for n, _ in known), max(n for _, n in known)))
    return found
