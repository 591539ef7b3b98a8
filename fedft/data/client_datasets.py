"""A client's rows: read, held out and encoded, by the same code for a client of a simulation and for a site.

    parts = of_site(config, "north")                          (train, held out), from files that hold one client's rows
    train, test = encode({"north": parts}, config, base)["north"]

A site whose file holds exactly the rows of the simulated client of its name, in their order, gets the same examples.
"""

import logging
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

from fedft import check
from fedft.config import RunConfig
from fedft.data import examples, partition, records
from fedft.errors import DataError
from fedft.models.load import Base
from fedft.quickstart import rows as stdlib_docstrings
from fedft.randomness import philox
from fedft.training import objectives

Rows = list[dict[str, Any]]
Parts = Mapping[str, tuple[Rows, Rows]]

log = logging.getLogger(__name__)


def read(source: str) -> Rows:
    """The records of `source`: files, a hub id (see `records.read_rows`) or "stdlib-docstrings", the built-in task.

    Raises DataError.
    """
    return stdlib_docstrings.rows() if source == "stdlib-docstrings" else records.read_rows(source)


def hold_out(rows: Rows, config: RunConfig, client: str) -> tuple[Rows, Rows]:
    """(train, held out): a client's records cut in two by `[data] holdout`, for runs without a test file.

    Which records are held out is decided by the run's seed and the client's name, so that a site and the simulated
    client of its name hold out the same ones.
    """
    return partition.hold_out(rows, config.data.holdout, philox.derive(config.server.seed, "holdout", client))


def of_site(config: RunConfig, name: str, field: str | None = None, value: str | None = None) -> tuple[Rows, Rows]:
    """(train, held out): the records of the one client that a site is.

    Args:
        config: its `[data]` train and test are the site's own files; an empty test file means nothing is held out.
        name: the site's name.
        field, value: for files that several sites share, the rows whose `field`, as text, is `value` are this site's;
            value None is `name`, field None takes all rows.
    Raises:
        DataError: a file is malformed, or no row to train on is this site's.
    """
    d, value = config.data, name if value is None else value
    found = read(d.train)
    train = _only(found, field, value)
    if field is not None and not train:
        known = {of for row in found if (of := partition.owner(row, field)) is not None}
        raise DataError(f"{d.train}: no row has {field} = {value!r}{check.nearest(value, known)}")
    if d.test is None:
        return hold_out(train, config, name)
    empty = os.path.isfile(d.test) and not os.path.getsize(d.test)
    return train, [] if empty else _only(read(d.test), field, value)


def _only(rows: Rows, field: str | None, value: str) -> Rows:
    return rows if field is None else [row for row in rows if partition.owner(row, field) == value]


def encode(parts: Parts, config: RunConfig, base: Base) -> dict[str, tuple[list[Any], list[Any]]]:
    """Records as the objective trains on them; those of which nothing can be learned are skipped, and counted in the
    log.

    Raises DataError for a client without a row to train on.
    """
    encode_row, d, found, skipped = partial(objectives.of(config).encode, base=base, config=config), config.data, {}, 0
    for client, (train, test) in parts.items():
        own, empty = examples.encode_all(train, encode_row, f"{d.train}, client {client!r}")
        held, held_empty = examples.encode_all(test, encode_row, f"{d.test or d.train}, held out for client {client!r}")
        if (
            largest := max((max(e.input_ids, default=0) for e in (*own, *held) if hasattr(e, "input_ids")), default=0)
        ) >= base.ids:
            raise DataError(
                f"[data] client {client!r}: token id {largest} of the tokenizer of {base.source}, whose model has "
                f"embeddings of {base.ids} ids"
            )
        if not own:
            why = f"nothing can be learned of its {empty} rows" if empty else "fewer clients, or a smaller holdout?"
            raise DataError(f"[data] client {client!r} has no row to train on; {why}")
        found[client] = (own, held)
        skipped += empty + held_empty
    if skipped:
        log.info("%d rows skipped: no token to learn among their first %d", skipped, d.max_length)
    return found
