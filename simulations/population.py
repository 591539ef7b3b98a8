"""Who has which rows: records of a data set cut into clients, and each client's train and held-out examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedft import data, philox, stdlib_docstrings
from fedft.config import RunConfig
from fedft.data import Example
from fedft.errors import DataError
from fedft.model import Base

Rows = list[dict[str, Any]]
Parts = Mapping[str, tuple[Rows, Rows]]


def rows_by_client(config: RunConfig) -> Parts:
    """(train, held-out) records by client name, from the `[data]` table and the run's seed."""
    d, seed = config.data, config.server.seed
    rows = stdlib_docstrings.rows() if d.train == "stdlib-docstrings" else data.read_rows(d.train)
    owned = _by_client(rows, config)
    if d.clients is not None and len(owned) < d.clients:
        raise DataError(f"[data] clients = {d.clients}, but {d.train} has rows of {len(owned)} clients only")
    if d.test is None:
        return {c: data.hold_out(mine, d.holdout, philox.derive(seed, "holdout", c)) for c, mine in owned.items()}
    test = data.read_rows(d.test)
    if d.partition == "natural":
        of_client: dict[str, Rows] = {c: [] for c in owned}
        for row in test:
            of_client.get(str(row.get(d.client)), []).append(row)
    else:
        of_client = {c: test[i :: len(owned)] for i, c in enumerate(owned)}
    return {c: (mine, of_client[c]) for c, mine in owned.items()}


def _by_client(rows: Rows, config: RunConfig) -> dict[str, Rows]:
    d = config.data
    parts = data.partition(
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
    """Records as token examples. Raises DataError for a client without a row to train on."""
    found = {}
    for client, (train, test) in parts.items():
        found[client] = (_examples(train, config, base, client), _examples(test, config, base, client))
        if not found[client][0]:
            raise DataError(f"[data] client {client!r} has no row to train on; fewer clients, or a smaller holdout?")
    return found


def _examples(rows: Sequence[dict[str, Any]], config: RunConfig, base: Base, client: str) -> list[Example]:
    d = config.data
    found = []
    for i, row in enumerate(rows):
        where = f"{d.train}, row {i + 1} of {client}"
        if config.model.task == "causal-lm":
            example = data.encode_generation(
                row,
                prompt=d.prompt,
                response=d.response,
                tokenizer=base.tokenizer,
                max_length=d.max_length,
                max_prompt=d.max_prompt,
                where=where,
            )
        else:
            example = data.encode_label(
                row,
                text=d.text,
                label_field=d.label,
                labels=config.model.labels,
                tokenizer=base.tokenizer,
                max_length=d.max_length,
                where=where,
            )
        found.append(example)
    return found
