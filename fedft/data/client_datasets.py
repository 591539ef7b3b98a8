"""A client's rows: read, split into train and held out, encoded. Simulated clients and sites use the same code.

    parts = of_site(config, "north")                          (train, held out), from files that hold one client's rows
    train, test = encode({"north": parts}, config, base)["north"]

A site whose file holds exactly the rows of the simulated client of its name, in their order, gets the same examples.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedft import check, quickstart
from fedft.config import RunConfig
from fedft.data import chat, partition, preferences, records, token_cache
from fedft.data.control_tokens import ControlTokens
from fedft.data.row_counts import RowCounts
from fedft.data.token_batches import Encoder
from fedft.errors import DataError
from fedft.models import tasks
from fedft.models.load import Base
from fedft.quickstart import rows as stdlib_docstrings
from fedft.randomness import philox
from fedft.training import objectives

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
"""Records, not yet encoded."""
Parts = Mapping[str, tuple[Rows, Rows]]
"""(train, held out) by client."""


def read(source: str | Sequence[str]) -> Rows:
    """The records of `source`: files, a hub id, or "stdlib-docstrings", the built-in task; of a list, in its order.

    Raises DataError as `records.read_rows` does, and for an empty list or one that names the same twice.
    """
    if source == quickstart.ROWS:
        return stdlib_docstrings.rows()
    if isinstance(source, str):
        return records.read_rows(source)
    if not source:
        raise DataError("[data] train or test is an empty list, wanted at least one file")
    files = [file for one in source for file in records.files_of(one)]
    if twice := next((file for n, file in enumerate(files) if file in files[:n]), None):
        raise DataError(f"[data] train or test names {twice} twice; each of its rows would count twice")
    return [row for one in source for row in read(one)]


def read_test(config: RunConfig) -> Rows:
    """The records of `[data] test`, none where it is left out; a file that is trained on, too, is said."""
    d = config.data
    if d.test is None:
        return []
    train, test = ({said} if isinstance(said, str) else {*said} for said in (d.train, d.test))
    if both := sorted(train & test):
        log.warning("[data] train and test both name %s: what is measured on it has been learned", check.few(both))
    return read(d.test)


def said(source: str | Sequence[str]) -> str:
    """`[data] train` or `test` as messages call it.

    >>> said("a.csv"), said(["a.csv", "b.csv"])
    ('a.csv', 'a.csv, b.csv')
    """
    return source if isinstance(source, str) else check.few(source)


def hold_out(rows: Rows, config: RunConfig, client: str) -> tuple[Rows, Rows]:
    """(train, held out): a client's records split in two by `[data] holdout`, for runs without a test file.

    Which records are held out is decided by the run's seed and the client's name, so that a site and the simulated
    client of its name hold out the same ones.
    """
    return partition.hold_out(rows, config.data.holdout, philox.derive(config.server.seed, "holdout", client))


def of_site(config: RunConfig, name: str, field: str | None = None, value: str | None = None) -> tuple[Rows, Rows]:
    """(train, held out): the records of a site, which is one client.

    Args:
        config: the site's; `[data]` train and test name its own files. An empty test file: nothing is held out.
        name: the site's name.
        field, value: for files that several sites share: the rows whose `field`, as text, is `value` are this site's.
            value None is `name`; field None takes all rows.
    Raises:
        DataError: a file is malformed, or no row to train on is this site's.
    """
    d, value = config.data, name if value is None else value
    found = read(d.train)
    train = _only(found, field, value)
    if field is not None and not train:
        known = {of for row in found if (of := partition.owner(row, field)) is not None}
        raise DataError(f"{said(d.train)}: no row has {field} = {value!r}{check.nearest(value, known)}")
    if d.test is None:
        return hold_out(train, config, name)
    empty = isinstance(d.test, str) and os.path.isfile(d.test) and not os.path.getsize(d.test)
    return train, [] if empty else _only(read_test(config), field, value)


def _only(rows: Rows, field: str | None, value: str) -> Rows:
    """The rows whose owner by `field` is `value`; all rows where field is None."""
    return rows if field is None else [row for row in rows if partition.owner(row, field) == value]


def encode(
    parts: Parts, config: RunConfig, base: Base, counts: RowCounts | None = None, cache: Path | None = None
) -> dict[str, tuple[list[Any], list[Any]]]:
    """(train, held out) by client, every record encoded as the run's objective trains on it.

    What is cut or left out is added to `counts`. `cache` is a folder for encoded rows, see `token_cache`; None: nothing
    is kept. Raises DataError for a record that cannot be encoded, for a client without a record to train on, and for a
    token id that the model has no embedding for.
    """
    counts = RowCounts() if counts is None else counts
    d, found = config.data, {}
    everything = [row for both in parts.values() for part in both for row in part] if cache else []
    kept = None
    objective = objectives.of(config)
    if (
        cache is not None
        and d.encode is None
        and type(objective) is objectives.Likelihood
        and len(everything) >= token_cache.FEWEST
    ):
        kept = token_cache.TokenCache(cache, everything, config, base.tokenizer_digest)
    examples_of = Encoder(objective, config, base, counts, kept)
    control = ControlTokens(config, base.tokenizer)
    for client, (train, test) in parts.items():
        where = f"{said(d.train)}, client {client!r}"
        held_where = f"{said(d.test or d.train)}, held out for client {client!r}"
        control.look((*train, *test))
        before = counts.empty + counts.dropped
        own = examples_of(train, where)
        left_out = counts.empty + counts.dropped - before
        held = examples_of(test, held_where)
        largest = max((_largest_id(x) for e in (*own, *held) for x in getattr(e, "both", (e,))), default=0)
        if largest >= base.ids:
            raise DataError(
                f"[data] client {client!r}: token id {largest} of the tokenizer of {base.source}, whose model has "
                f"embeddings of {base.ids} ids"
            )
        if not own:
            why = f"all {left_out} were left out, empty or too long" if left_out else "a smaller holdout would do"
            raise DataError(f"[data] client {client!r} has no row to train on; {why}")
        if not held:
            counts.clients_without_test_rows.append(client)
        found[client] = (own, held)
    if kept is not None:
        kept.keep()
    counts.with_control_tokens, counts.control_tokens = control.rows, sorted(control.texts)
    if tasks.of(config.model.task).generates:
        first = next((row for train, _ in parts.values() for row in train), {})
        if _talks(config, first) and chat.dated(d.chat_template, base.tokenizer):
            counts.fixed_date = chat.DATE.strftime("%d %b %Y")
        counts.never_stops = _never_stops(config, base.tokenizer, first)
    return found


def _largest_id(example: Any) -> int:
    """The largest token id of an example, given or learned; 0 of a row that an objective encodes in another form."""
    labels = getattr(example, "labels", ())
    return max((*getattr(example, "input_ids", ()), *(labels if isinstance(labels, list) else ())), default=0)


def _talks(config: RunConfig, row: Mapping[str, Any]) -> bool:
    """Whether the run's records, `row` among them, are conversations."""
    return bool(preferences.conversation(row, config.data.chosen)) if config.local.pairs else bool(config.data.messages)


def _never_stops(config: RunConfig, tokenizer: Any, row: Mapping[str, Any]) -> str:
    """Why no end of a response or turn is learned, and what to do; "" where one is. `row`: one of the run's records."""
    d, pairs = config.data, config.local.pairs
    learned = d.chosen if pairs else d.response
    if d.tokens is not None or d.encode is not None:
        return ""  # nobody knows which of them is an end
    if _talks(config, row):
        if chat.ends(d.chat_template, tokenizer):
            return ""
        return (
            "the chat template has no end token in a turn of the assistant, or leaves it out of its {% generation %} "
            "marks; a [data] chat_template that writes eos_token behind the content would do"
        )
    if tokenizer.eos_token_id is not None or not learned.endswith(("}", "]]")):
        return ""  # what stands behind the last field is an end, too
    return (
        "its tokenizer has no end token; write eos_token into its tokenizer_config.json, or an end of your own into "
        f"[data], as in {'chosen' if pairs else 'response'} = '{{answer}}\\n###'"
    )
