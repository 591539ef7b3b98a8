"""Whose a row is: held-out rows, and cuts of one data set into clients."""

import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch

from fedft import check
from fedft.data.records import Row
from fedft.errors import DataError


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test): floor(fraction * len(rows)) rows drawn at random for the test; both keep the order of `rows`.

    The same number of rows, fraction and seed draw the same rows. Raises ValueError unless 0 <= fraction <= 1.

    >>> train, test = hold_out([{"n": n} for n in range(10)], 0.25, seed=7)
    >>> len(train), len(test)
    (8, 2)
    """
    check.between(0, 1, fraction=fraction)
    drawn = set(_shuffled(len(rows), seed)[: int(len(rows) * fraction + 1e-9)])  # 0.29 * 100 is 28.999...
    return [r for i, r in enumerate(rows) if i not in drawn], [r for i, r in enumerate(rows) if i in drawn]


def partition(
    rows: Sequence[Row], *, how: str, field: str | None, clients: int | None, alpha: float, seed: int
) -> dict[str, list[int]]:
    """The rows of each client, as numbers from 0 in ascending order: every row has one client, every client a row.

    Args:
        how: "natural": one client per value of `field`, by which it is called; `clients` and `alpha` are not used.
            "iid": `clients` of equal size, up to one row. "dirichlet": of each value of `field`, client k gets a share
            p_k, p ~ Dirichlet(alpha, ..., alpha); up to eleven draws until nobody is left without a row.
        seed: decides it all; names are "client-0", "client-1", ... unless natural.
    Raises:
        ValueError: another `how`.
        DataError: more clients than rows; a row without `field`; every draw left some client without a row.

    >>> rows = [{"by": "austen"}, {"by": "melville"}, {"by": "austen"}]
    >>> partition(rows, how="natural", field="by", clients=None, alpha=1.0, seed=7)
    {'austen': [0, 2], 'melville': [1]}
    """
    check.one_of(("natural", "iid", "dirichlet"), how=how)
    if how != "natural" and (clients is None or not 1 <= clients <= len(rows)):
        raise DataError(f"partition {how!r} of {len(rows)} rows: expected 1 to {len(rows)} clients, got {clients}")
    texts = [""] * len(rows) if how == "iid" else _texts(rows, field, how)
    names = sorted(set(texts)) if how == "natural" else [f"client-{k}" for k in range(clients or 0)]
    return dict(zip(names, _parts(texts, how, clients or 0, alpha, seed), strict=True))


def _texts(rows: Sequence[Row], field: str | None, how: str) -> list[str]:
    for number, row in enumerate(rows, 1):
        if field is None or row.get(field) is None:
            raise DataError(f"partition {how!r}: row {number} has no {field!r}; there are {', '.join(map(str, row))}")
    return [str(row[field]) for row in rows if field is not None]


def _parts(texts: Sequence[str], how: str, clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Row numbers by part, cut by Flower's partitioners."""
    from datasets import Dataset
    from flwr_datasets import partitioner as flower

    # Numbers in place of texts: the partitioners compare through NumPy, which pads and strips text.
    codes = {text: code for code, text in enumerate(sorted(set(texts)))}
    order = list(range(len(texts)))
    seed %= 2**63  # NumPy takes no negative seed
    cut: Any
    if how == "natural":
        cut = flower.NaturalIdPartitioner(partition_by="code")
    elif how == "iid":
        order = _shuffled(len(texts), seed)  # this one cuts a row of rows where it stands
        cut = flower.IidPartitioner(num_partitions=clients)
    else:
        cut = flower.DirichletPartitioner(clients, "code", float(alpha), min_partition_size=1, seed=seed)
    cut.dataset = Dataset.from_dict({"row": order, "code": [codes[texts[i]] for i in order]})
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():  # its progress bar; its warning at every new draw
            warnings.simplefilter("ignore")
            return [sorted(cut.load_partition(k)["row"]) for k in range(cut.num_partitions)]
    except ValueError as e:
        hint = "a larger alpha or fewer clients would do"
        raise DataError(f"partition {how!r}: some of {clients} clients got no row at alpha = {alpha}; {hint}") from e


def _shuffled(n: int, seed: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
