"""Who has which rows: the records of a data set cut into clients, as the run file says."""

import logging

from fedft.config import RunConfig
from fedft.data import client_datasets, partition
from fedft.data.client_datasets import Parts, Rows, encode
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError
from fedft.randomness import philox
from fedft.registry import named

log = logging.getLogger(__name__)

__all__ = ["Parts", "Rows", "encode", "rows_by_client", "whole_by_client"]


def rows_by_client(config: RunConfig, counts: RowCounts | None = None) -> Parts:
    """(train, held-out) records by client name, from the `[data]` table and the run's seed, with `[audit]` canaries.

    Rows of a test file that belong to nobody are added to `counts`. Raises DataError as `whole_by_client`, ConfigError
    for records of a form that cannot hold a canary.
    """
    owned, held = whole_by_client(config, counts)
    if config.data.test is None:
        parts = {c: client_datasets.hold_out(mine, config, c) for c, mine in owned.items()}
    else:
        parts = {c: (mine, held[c]) for c, mine in owned.items()}
    if not config.audit.canaries:
        return parts
    from fedft.privacy.audit.canaries import planned
    from fedft.privacy.audit.planted_records import planted_in

    return planted_in(parts, config, planned(config.audit, list(parts)))


def whole_by_client(config: RunConfig, counts: RowCounts | None = None) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """(all rows, rows of the test file) by client name, before anything is held out; without a test file none.

    Raises DataError where files are malformed, or no row of the test file belongs to a client of the training file.
    """
    d, counts = config.data, RowCounts() if counts is None else counts
    owned = _by_client(client_datasets.read(d.train), config, counts)
    if d.clients is not None and len(owned) < d.clients:
        raise DataError(
            f"[data] clients = {d.clients}, but {client_datasets.said(d.train)} has rows of {len(owned)} clients only"
        )
    test = client_datasets.read_test(config)
    if _natural(config):
        held: dict[str, Rows] = {c: [] for c in owned}
        for row in test:
            if (owner := partition.owner(row, d.client)) in held:
                held[owner].append(row)
            else:
                counts.test_rows_of_nobody += 1
        if test and counts.test_rows_of_nobody == len(test):
            train, tested = client_datasets.said(d.train), client_datasets.said(d.test or "")
            theirs = ", ".join(sorted({repr(partition.owner(row, d.client)) for row in test})[:3])
            raise DataError(
                f"{tested}: none of its {len(test)} rows belongs to a client; field {d.client!r} says {theirs} there "
                f"and {', '.join(map(repr, list(owned)[:3]))} in {train}"
            )
    else:
        held = {c: test[i :: len(owned)] for i, c in enumerate(owned)}
    return owned, held


def _by_client(found: Rows, config: RunConfig, counts: RowCounts) -> dict[str, Rows]:
    """The rows of each client that has enough of them, the first `[data] clients` by name; the others are counted."""
    d = config.data
    parts = partition.partition(
        found,
        how=d.partition,
        field=d.client,
        clients=None if _natural(config) else d.clients,
        alpha=d.alpha,
        seed=philox.derive(config.server.seed, "partition"),
    )
    if _natural(config) and (of_nobody := len(parts.get("", ()))):
        log.warning("%d rows have nothing in %r; they are one client, whose name is ''", of_nobody, d.client)
    names = sorted(parts, key=str.encode)
    counts.clients_too_small += [c for c in names if len(parts[c]) < d.min_rows]
    enough = [c for c in names if len(parts[c]) >= d.min_rows]
    if not enough:
        most = max(map(len, parts.values()))
        raise DataError(f"[data] min_rows = {d.min_rows}: the largest of {len(parts)} clients has {most} rows")
    return {c: [found[i] for i in parts[c]] for c in enough[: d.clients]}


def _natural(config: RunConfig) -> bool:
    """Whether rows say themselves whose they are, those of the test file too."""
    return named(config.data.partition, "partitioner")[0] == "natural"
