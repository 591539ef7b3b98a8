"""What a run is about to do, known before round 1: model, what is trained, clients and rows, bytes of a round.

`fedft.reports.run_header` shows it, and `summary.json` keeps it under `header`.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.clients import Group, clients_of
from fedft.forecast.messages import message_bytes
from fedft.forecast.rows import encoded
from fedft.forecast.work import Forecaster
from fedft.models import device_arithmetic, free_memory
from fedft.server import disk_need
from fedft.server.message_sizes import first_round, sent_down
from fedft.simulations import fleet
from fedft.simulations.workplace import Workplace


def header(place: Workplace, together: int = 1, privacy: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """The facts of a run that has not begun, all of them plain values.

    model, device, dtype, base_bits         as the run file names them
    workers                                 the device of each, none where this process trains
    parameters, trainable                   how many numbers the base has, and how many learn at the largest rank
    strategy, adapter, steps, rounds        what is done
    ranks                                   those that clients have, none where the strategy has no ranks
    clients, asked, measured                how many there are, train in a round, and are evaluated at an evaluation
    train_rows, held_out_rows               of all clients, after what was left out
    cut, left_out                           of the rows: how many were cut; were dropped, empty or nobody's
    max_length, every, budget               of the run file
    bytes_up, bytes_down                    of a round, as far as shapes tell; see `_traffic`
    planned                                 whether somebody plans, so that these are of the first round only
    disk                                    bytes of the run folder at the end, as `fedft.server.disk_need` foresees
    memory, largest                         bytes of a client's process at its peak by what they are for, foreseen as by
                                            `fedft plan`, and whose they are; of the server none is among them
    flops, pace                             operations of the round that has most, and whose it is
    together                                clients that train in one pass, as given
    depends                                 what the run's bytes depend on beside its run file and rows, in words
    privacy                                 what it will cost (`fedft.forecast.privacy_cost.cost`), as given
    """
    config, recipe = place.config, place.recipe
    devices = fleet.devices(config, len(place.clients))
    ranks = [] if recipe.space.rank_free else sorted({*config.ranks()[: len(place.clients)]})
    trained = recipe.space.spec(place.layout, max(ranks, default=0))
    rows, able = _rows(place), sum(bool(c.test_rows) for c in place.clients.values())
    asked = min(config.clients.per_round or len(place.clients), len(place.clients))
    measured = min(config.eval.clients or able, able)
    up, down = _traffic(place, asked, measured)
    return {
        "model": config.model.id,
        "device": config.model.device,
        "dtype": config.model.dtype,
        "base_bits": config.model.base_bits,
        "workers": devices,
        "parameters": sum(map(math.prod, place.layout.parameters.values())),
        "trainable": sum(math.prod(t.shape) for t in trained.values()),
        "strategy": config.strategy.name,
        "adapter": recipe.space.name,
        "ranks": ranks,
        "steps": config.local.steps_over(round(rows["train_rows"] / max(1, len(place.clients)))),
        "rounds": config.server.rounds,
        "clients": len(place.clients),
        "asked": asked,
        "measured": measured,
        **rows,
        "max_length": config.data.max_length,
        "every": config.eval.every,
        "budget": config.server.budget,
        "bytes_up": up,
        "bytes_down": down,
        "planned": recipe.plans_work,
        "disk": disk_need.foreseen(config, recipe, place.layout, len(place.clients)).whole,
        "privacy": dict(privacy),
        **_extremes(foreseen(place, together)),
        "together": together,
        "depends": device_arithmetic.depends(config.model.device, config.local)
        + ([f"{together} clients a pass{f', {len(devices)} workers' * (len(devices) > 1)}"] if together > 1 else []),
    }


def _rows(place: Workplace) -> dict[str, int]:
    """`train_rows`, `held_out_rows`, `cut` and `left_out` of a header."""
    clients, counts = place.clients.values(), place.rows
    return {
        "train_rows": sum(len(c.train_rows) for c in clients),
        "held_out_rows": sum(len(c.test_rows) for c in clients),
        "cut": counts.cut - counts.dropped,
        "left_out": counts.dropped + counts.empty + counts.test_rows_of_nobody,
    }


def _extremes(group: Group) -> dict[str, Any]:
    """`memory`, `largest`, `flops` and `pace` of a header: who takes most memory, and who has most to compute."""
    large, slow = group.largest, group.slowest
    memory = {**asdict(large.memory), "peak": large.memory.peak}
    return {"memory": memory, "largest": large.name, "flops": slow.flops, "pace": slow.name}


def foreseen(place: Workplace, together: int = 1) -> Group:
    """What the run's clients do in their first round, and what it takes, as far as the run file says it."""
    anatomy = anatomy_of(place.base, place.config.model.modules_to_save)
    rows = encoded({n: (c.train_rows, c.test_rows) for n, c in place.clients.items()}, place.config)
    of = Forecaster(anatomy, place.layout, place.config, place.recipe, together=together)
    return Group(clients_of(of, rows))


def peak(place: Workplace) -> int | None:
    """The most bytes that this process has had so far, where clients train in it; None elsewhere, or nobody says."""
    if place.config.server.workers is not None:
        return None
    return free_memory.peak_bytes(next(place.base.model.parameters()).device)


def error(place: Workplace, said: Mapping[str, Any], before: int | None) -> dict[str, Any]:
    """What a run's header `said` of memory against what its process had, for the summary, by key.

    `forecast_error`: measured over foreseen, less 1; the process of a simulation is the server's, too, so it may be
    above 0 without a fault of the formulas. Nothing where the peak was not in this run: `before` is that of before.
    """
    now = peak(place)
    if now is None or before is None or now <= before:
        return {}
    return {"forecast_error": {"memory": now / said["memory"]["peak"] - 1}}


def _traffic(place: Workplace, asked: int, measured: int) -> tuple[int, int]:
    """(bytes up, bytes down) of a round in which `asked` clients train and `measured` are evaluated, from shapes alone.

    Where somebody plans, of the first round: what later ones will ask for depends on it.

    A client that replaces what it holds is sent the state once a round, whether it trains, is evaluated or both. One
    that adds up what comes is sent as much as all who were asked have sent (stacks of factors; lists of seeds are
    shorter), or, of a state that is sent as it changes, as much as one has. Codecs whose length depends on the numbers
    count as their longest. Raises ConfigError for options that do not fit.
    """
    config, recipe = place.config, place.recipe
    state, plans = first_round(config, recipe, place.layout, len(place.clients))
    largest = max(p.rank for p in plans)
    kinds = [(p.shape.key, p.chosen, p.steps, *sorted(p.extra.items())) for p in plans]
    uploads = {kind: recipe.spec(place.layout, p) for kind, p in zip(kinds, plans, strict=True)}
    up = sum(message_bytes(uploads[kind], config.codec.up) for kind in kinds) * asked // len(plans)
    measured = measured if config.eval.every == 1 else 0
    who = asked if recipe.evaluation_has_own_state else max(asked, measured)
    if not (recipe.replaces_what_is_held or config.codec.changes):
        sent = sum(message_bytes(uploads[kind], "fp32") for kind in kinds) // len(plans)
        return up, sent * who * (asked if recipe.downlink_is_increment else 1)
    codec = config.codec.changes or config.codec.plans
    shapes = {kind: sent_down(recipe, state, p) for kind, p in zip(kinds, plans, strict=True)}
    down = sum(message_bytes(shapes[kind], codec) for kind in kinds) * who // len(plans)
    if small := sum(p.rank < largest for p in plans) if recipe.cuts_the_state else 0:  # they measure all of it, too
        whole = sent_down(recipe, state, replace(plans[0], rank=largest))
        down += measured * small // len(plans) * message_bytes(whole, codec)
    if recipe.evaluation_has_own_state:
        down += measured * message_bytes(sent_down(recipe, state, replace(plans[0], steps=0, evaluate=True)), codec)
    return up, down
