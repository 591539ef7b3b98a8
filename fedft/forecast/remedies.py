"""The cheapest change of a run file that makes a client's work fit into a limit.

Changes by what they cost, the first one least: an evaluation of fewer rows at a time, checkpointing (a third more
time), a smaller micro_batch (the same step in more passes), base_bits 8 and 4 (other weights), adapters in attention
alone.
One change is cheaper than two; of one kind the smallest step that is enough is taken.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, combinations, product
from typing import NamedTuple

from fedft.contract import Work
from fedft.forecast.work import Forecaster

MOST = 4  # changes at a time


class Change(NamedTuple):
    """One change of a run file."""

    text: str
    table: str
    key: str
    value: object


class Remedy(NamedTuple):
    """Changes that together are enough, or the most that can be done."""

    text: str
    """As a person would say them; "" where there is no change to make."""
    peak: float
    """Bytes at the peak with them."""
    fits: bool


def cheapest(of: Forecaster, work: Work, limit: float) -> Remedy:
    """The first changes that bring the work below `limit` bytes; those that bring it lowest where none do."""
    kinds = [found for found in _kinds(of, work) if found]
    best = Remedy("", of.memory(work).peak, False)
    sizes = range(1, min(MOST, len(kinds)) + 1)
    for chosen in chain.from_iterable(combinations(kinds, n) for n in sizes):
        for changes in product(*chosen):
            peak = changed(of, changes).memory(work).peak
            found = Remedy(", ".join(c.text for c in changes), peak, peak <= limit)
            if found.fits:
                return found
            best = min(best, found, key=lambda r: r.peak)
    return best


def changed(of: Forecaster, changes: tuple[Change, ...]) -> Forecaster:
    """The same forecaster of a run file with these changes."""
    config, layout = of.config, of.layout
    for c in changes:
        config = replace(config, **{c.table: replace(getattr(config, c.table), **{c.key: c.value})})
        if c.key == "targets":
            inside = {m for m, p in of.anatomy.parts.items() if p.role.startswith("attention")}
            layout = replace(layout, modules={m: s for m, s in layout.modules.items() if m in inside})
    return replace(of, config=config, layout=layout, found={})


def _kinds(of: Forecaster, work: Work) -> Iterator[list[Change]]:
    """The changes of each kind, from the smallest step to the largest."""
    local, model, space = of.config.local, of.config.model, of.recipe.space
    yield [Change(f"[eval] batch_size {n}", "eval", "batch_size", n) for n in _halves(of.config.eval.batch_size)]
    if of.back_propagates:
        yield [] if local.checkpointing else [Change("checkpointing", "local", "checkpointing", True)]
        now = min(work.batch or local.batch_size, local.micro_batch if isinstance(local.micro_batch, int) else 2**31)
        yield [Change(f"micro_batch {n}", "local", "micro_batch", n) for n in _halves(now)]
    if not space.of_base:
        bits = [n for n in (8, 4) if n < (work.bits or model.bits)] if of.anatomy.packed else []
        yield [Change(f"base_bits {n}", "model", "base_bits", n) for n in bits] if not work.bits else []
        parts = [p.role for m in of.layout.modules if (p := of.anatomy.parts.get(m))]
        some = any(r.startswith("attention") for r in parts) and any(r.startswith("feed") for r in parts)
        yield [Change("targets of attention alone", "model", "targets", of.config.model.targets)] if some else []


def _halves(n: int) -> list[int]:
    """Half of a number, a quarter, and so on down to 1."""
    found = []
    while n > 1:
        n //= 2
        found.append(n)
    return found
