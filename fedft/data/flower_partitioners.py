"""Cuts by the partitioners of Flower's data sets: by Dirichlet shares, and any other by its name and options."""

import inspect
import warnings
from collections.abc import Sequence
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

from fedft import check
from fedft.data.partition import Cut, called, counted, texts
from fedft.data.records import Row
from fedft.errors import ConfigError, DataError, in_one_line


def dirichlet(*, alpha: float = 0.5) -> Cut:
    """The partitioner by which client k gets a share p_k of each value's rows, p ~ Dirichlet(alpha, ..., alpha).

    `alpha` > 0; small ones give more skewed clients. Up to eleven draws are made until no client is left without a row.

    Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, arXiv:1905.12022.
    """

    def cut(rows: Sequence[Row], field: str | None, clients: int | None, seed: int) -> dict[str, list[int]]:
        count, said = counted(rows, clients, "dirichlet"), texts(rows, field, "dirichlet")
        flower = _library("dirichlet").DirichletPartitioner(
            count, "code", float(alpha), min_partition_size=1, seed=seed % 2**63
        )
        try:
            return called(_parts(flower, said))
        except ValueError as e:
            raise DataError(
                f"partition 'dirichlet': some of {count} clients got no row at alpha = {alpha}; a larger alpha or "
                f"fewer clients would do"
            ) from e

    return cut


def flwr(*, partitioner: str = "IidPartitioner", options: dict[str, Any] | None = None) -> Cut:
    """The partitioner of this name in the package flwr-datasets, as "PathologicalPartitioner".

    One that leaves rows to nobody, or a client without any, is refused: the counts are in the message.

    `options` are its own keyword arguments. The run file's field, number of clients and seed are passed as
    `partition_by`, `num_partitions` and `seed` to those that take them, unless they are among the options. A field's
    values are numbered in the order of their text.
    """
    known = _library("flwr")
    names = [n for n in known.__all__ if n.endswith("Partitioner") and n != "Partitioner"]
    check.one_of(names, partitioner=partitioner)
    factory, given = getattr(known, partitioner), dict(options or {})
    takes = inspect.signature(factory).parameters

    def cut(rows: Sequence[Row], field: str | None, clients: int | None, seed: int) -> dict[str, list[int]]:
        said = texts(rows, field, partitioner) if "partition_by" in takes else [""] * len(rows)
        ours = {"partition_by": "code", "seed": seed % 2**63}
        if "num_partitions" in takes and "num_partitions" not in given:
            ours["num_partitions"] = counted(rows, clients, partitioner)
        try:
            return called(_parts(factory(**{n: x for n, x in ours.items() if n in takes} | given), said))
        except Exception as e:  # the library's own checks, and those of what it is built on
            raise ConfigError(f"[data] partition {partitioner!r}: {in_one_line(e)}") from e

    return cut


def _library(name: str) -> Any:
    """The partitioners of flwr-datasets. Raises ConfigError where they are not installed: a first run needs none."""
    try:
        import flwr_datasets.partitioner as known
    except ModuleNotFoundError:
        raise ConfigError(f"[data] partition {name!r} is of flwr-datasets; pip install 'fedft[partitioners]'") from None
    return known


def _parts(flower: Any, said: Sequence[str]) -> list[list[int]]:
    """Row numbers by part. ValueError where the partitioner finds no cut."""
    from datasets import Dataset

    # Numbers in place of texts: the partitioners compare through NumPy, which pads and strips text.
    codes = {text: code for code, text in enumerate(sorted(set(said)))}
    flower.dataset = Dataset.from_dict({"row": [*range(len(said))], "code": [codes[text] for text in said]})
    with redirect_stderr(StringIO()), warnings.catch_warnings():  # its progress bar; its warning at every new draw
        warnings.simplefilter("ignore")
        parts = [sorted(flower.load_partition(k)["row"]) for k in range(flower.num_partitions)]
    if any(not part for part in parts) or sum(map(len, parts)) != len(said):
        raise ValueError(f"{sum(map(len, parts))} of {len(said)} rows in {len(parts)} parts, some perhaps empty")
    return parts
