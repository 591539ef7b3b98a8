"""What sites of secure sums measure, as one sum more: `[privacy] evaluate = "summed"` in a deployment.

    site k     (loss / 20, accuracy, 1) in the first three integers of a vector of the block, zeros behind them
    server     means over the sites that have held-out rows and answer, at least t: all alike, for rows are hidden

The vector has a slot of its own, so a state that is measured costs a second one, and one upload more of each site. A
measurement is not kept: one that a kill cuts off is asked for again, in another slot. Of one state a site opens sums
over the same sites only, so where others answer then, or fewer than t do, the line says nothing of it, and the log why.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fedft.contract import State
from fedft.errors import RejectedUpdate, RunPaused
from fedft.privacy.secure_sum.context import threshold
from fedft.privacy.secure_sum.integer_uploads import RING, Integers, integers_of, masked_of, of_ring
from fedft.privacy.secure_sum.reach import MOST_LOSS
from fedft.server import admission
from fedft.server.exchange import Exchange
from fedft.server.masked_rounds import MaskedRounds, SumLost
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.wire import messages

log = logging.getLogger(__name__)


def measured(exchange: Exchange, state: State, barred: Collection[str], masked: MaskedRounds | None) -> dict[str, Any]:
    """What the line of a state says of it: mean "loss" and "accuracy", "refused", and "evaluation_bytes" of all of it.

    Without the means where no sum was opened. Blocks as an evaluation without masks does.

    Args:
        exchange: with the run's clients.
        state: that is measured.
        barred: clients that are not asked.
        masked: hides what each has measured; None: nothing does.
    """
    run, traffic = exchange.federation, Traffic()
    integers = integers_of(run.recipe)
    assert integers is not None
    means: dict[str, float] = {}
    try:
        total, count = _total(exchange, state, barred, masked, integers, traffic)
        means = _means(total, count)
    except (RunPaused, SumLost) as e:
        log.warning("the state of round %d is not measured: %s", state.version, e)
    of_both = [traffic] if masked is None else [traffic, masked.traffic]
    spent = {way: _added([getattr(t, way) for t in of_both]) for way in ("up", "down", "needed")}
    return {**means, "refused": [r for t in of_both for r in t.refused], "evaluation_bytes": spent}


def _total(
    exchange: Exchange, state: State, barred: Collection[str], masked: MaskedRounds | None, integers: Integers,
    traffic: Traffic,
) -> tuple[np.ndarray, int]:  # fmt: skip
    """(the sum of the sites' vectors, int64, over what one of them can send; how many they are).

    Raises RunPaused where fewer than t answer or open it.
    """
    run = exchange.federation
    able = [c for c in run.still(run.members) if run.held_out.get(c) and c not in barred]
    extra: Mapping[str, Any] = {}
    if masked is not None:
        extra, able = masked.begin(exchange, able)
    plans = {c: replace(p, steps=0, evaluate=True, extra=extra) for c, p in run.plans(state, able).items()}
    if masked is not None:
        masked.take_up(run, plans)
    vectors: dict[str, np.ndarray] = {}
    spec = {c: integers.upload(run.layout, p) for c, p in plans.items()}
    limits = {c: admission.longest(s, "fp32", run.config.limits) for c, s in spec.items()}

    def accept(came: Came) -> None:
        update = messages.decode_update(came.payload, spec[came.client], "fp32", max_bytes=limits[came.client])
        if (update.run, update.round) != (run.job.run, state.version):
            raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
        sent = update.delta[RING]
        vectors[came.client] = of_ring(sent) if masked is None else masked_of(sent)
        run.observe("measured", {"version": state.version, "client": came.client})

    def until() -> Until:
        return run.until(run.still(plans))

    run.observe("evaluating", {"version": state.version, "asked": list(plans), **until().to_dict()})
    exchange.ask("evaluate", plans, lambda version: state, accept, traffic, limits, until)
    there = {c: 1 for c in plans if c in vectors}
    if masked is None:
        if len(there) < (t := threshold(len(run.members))):
            raise RunPaused(f"{len(there)} sites have measured it, {t} are needed")
        total = np.sum([vectors[c].astype(np.int64) for c in there], axis=0)
    else:
        there = masked.open(exchange, there, lambda counted: None)
        total = masked.total({c: vectors[c] for c in there})
    largest = integers.spec(run.layout, next(iter(plans.values()))).largest
    return total / largest, len(there)


def _means(total: np.ndarray, count: int) -> dict[str, float]:
    """The means of a sum over `count` sites; none where they cannot have sent it, which is logged."""
    loss, accuracy, sites = (float(x) for x in total[:3])
    if abs(sites - count) > 1e-6 or not (0 <= loss <= count and 0 <= accuracy <= count) or np.any(total[3:]):
        log.warning("no sites can have measured what their sum says; the line says nothing of it")
        return {}
    return {"loss": loss / count * MOST_LOSS, "accuracy": accuracy / count}


def _added(parts: list[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in parts:
        for client, size in part.items():
            found[client] = found.get(client, 0) + size
    return found
