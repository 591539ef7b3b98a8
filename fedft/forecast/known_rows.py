"""What is known of clients' rows before a run: their numbers and lengths, where the files and a tokenizer are here."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fedft.config import RunConfig
from fedft.data import client_datasets
from fedft.data.client_datasets import Parts
from fedft.forecast.work import Rows
from fedft.models.load import Base

log = logging.getLogger(__name__)


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
