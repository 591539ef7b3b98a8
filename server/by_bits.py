"""Losses by the precision of the base, where a client has it in another one than the run says.

A line of metrics.jsonl has then, for example,

    "bits": {"4": {"clients": 1, "train_loss": 2.1, "evaluated": 1, "loss": 2.2}, "32": ...}
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from statistics import fmean
from typing import Any, TypeVar

from fedft.config import Model
from fedft.reports import metric_log
from fedft.update import BITS

T = TypeVar("T")


def mean_loss(facts: Collection[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """{"train_loss": its mean over clients} of a round, from (weight, metrics) of each update; {} if one tells none."""
    if not facts or not all("loss" in m for _, m in facts):  # with noise on records it would tell of them
        return {}
    return {"train_loss": sum(n * m["loss"] for n, m in facts) / sum(n for n, _ in facts)}


def trained(facts: Collection[tuple[int, Mapping[str, float]]], run: Model) -> dict[str, Any]:
    """{"bits": clients and mean training loss by bits} of a round, from (weight, metrics) of each update; or {}.

    >>> trained([(3, {"loss": 1.0}), (1, {"loss": 5.0}), (2, {"loss": 4.0, "bits": 4.0})], Model(dtype="float32"))
    {'bits': {'4': {'clients': 1, 'train_loss': 4.0}, '32': {'clients': 2, 'train_loss': 2.0}}}
    """
    found = {}
    for bits, some in _groups([m for _, m in facts], facts, run):
        found[bits] = {"clients": len(some), **mean_loss(some)}
    return {BITS: found} if found else {}


def evaluated(line: Mapping[str, Any], found: Collection[Mapping[str, float]], run: Model) -> dict[str, Any]:
    """{"bits": what the line has by bits, with clients and mean loss of an evaluation, from its metrics}; or {}."""
    table = {bits: dict(said) for bits, said in line.get(BITS, {}).items()}
    for bits, some in _groups(found, found, run):
        losses = [m["loss"] for m in some if "loss" in m]
        table.setdefault(bits, {}).update({"evaluated": len(losses), "loss": fmean(losses)} if losses else {})
    return {BITS: table} if table else {}


def clients(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many clients had the base in how many bits in the last round of these lines; {} where all had the run's."""
    rounds = [line for line in lines if "participants" in line]
    table = rounds[-1].get(BITS, {}) if rounds else {}
    return {bits: said["clients"] for bits, said in table.items() if "clients" in said}


def _groups(said: Iterable[Mapping[str, float]], items: Iterable[T], run: Model) -> list[tuple[str, list[T]]]:
    """(bits, items of whom it is `said`) from few bits to many; [] where nobody says any: all are as the run says."""
    said, groups = list(said), defaultdict(list)
    if not any(BITS in m for m in said):
        return []
    for m, item in zip(said, items, strict=True):
        bits = m.get(BITS, run.bits)
        groups[int(bits) if bits in metric_log.KNOWN_BITS else 0].append(item)
    return [(str(bits or "other"), groups[bits]) for bits in sorted(groups)]
