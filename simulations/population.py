"""Who has which rows: records of a data set cut into clients, and each client's train and held-out examples."""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fedft import data, philox, records, stdlib_docstrings
from fedft.config import RunConfig
from fedft.data import Example
from fedft.errors import DataError
from fedft.model import Base

Rows = list[dict[str, Any]]
Parts = Mapping[str, tuple[Rows, Rows]]

log = logging.getLogger(__name__)


def rows_by_client(config: RunConfig) -> Parts:
    """(train, held-out) records by client name, from the `[data]` table and the run's seed."""
    d, seed = config.data, config.server.seed
    rows = stdlib_docstrings.rows() if d.train == "stdlib-docstrings" else records.read_rows(d.train)
    owned = _by_client(rows, config)
    if d.clients is not None and len(owned) < d.clients:
        raise DataError(f"[data] clients = {d.clients}, but {d.train} has rows of {len(owned)} clients only")
    if d.test is None:
        return {c: records.hold_out(mine, d.holdout, philox.derive(seed, "holdout", c)) for c, mine in owned.items()}
    test = records.read_rows(d.test)
    if d.partition == "natural":
        of_client: dict[str, Rows] = {c: [] for c in owned}
        for row in test:
            of_client.get(str(row.get(d.client)), []).append(row)
    else:
        of_client = {c: test[i :: len(owned)] for i, c in enumerate(owned)}
    return {c: (mine, of_client[c]) for c, mine in owned.items()}


def _by_client(rows: Rows, config: RunConfig) -> dict[str, Rows]:
    d = config.data
    parts = records.partition(
        rows,
        how=d.partition,
        field=d.client,
        clients=None if d.partition == "natural" else d.clients,
        alpha=d.alpha,
        seed=philox.derive(config.server.seed, "partition"),
    )
    names = sorted(parts, key=str.encode)[: d.clients]
    return {c: [rows[i] for i in parts[c]] for c in names}


def encode(parts: Parts, config: RunConfig, base: Base) -> dict[str, tuple[list[Example], list[Example]]]:
    """Records as token examples; those of which nothing can be learned are skipped, and counted in the log.

    Raises DataError for a client without a row to train on.
    """
    encode_row, d, found, skipped = _encoder(config, base), config.data, {}, 0
    for client, (train, test) in parts.items():
        own, empty = data.encode_all(train, encode_row, f"{d.train}, client {client!r}")
        held, held_empty = data.encode_all(test, encode_row, f"{d.test or d.train}, held out for client {client!r}")
        if not own:
            why = f"nothing can be learned of its {empty} rows" if empty else "fewer clients, or a smaller holdout?"
            raise DataError(f"[data] client {client!r} has no row to train on; {why}")
        found[client] = (own, held)
        skipped += empty + held_empty
    if skipped:
        log.info("%d rows skipped: no token to learn among their first %d", skipped, d.max_length)
    return found


def _encoder(config: RunConfig, base: Base) -> Callable[..., Example]:
    d = config.data
    if config.model.task == "causal-lm":
        return partial(
            data.encode_generation,
            prompt=d.prompt,
            response=d.response,
            tokenizer=base.tokenizer,
            max_length=d.max_length,
            max_prompt=d.max_prompt,
        )
    return partial(
        data.encode_label,
        text=d.text,
        label_field=d.label,
        labels=config.model.labels,
        tokenizer=base.tokenizer,
        max_length=d.max_length,
    )
