"""How much disk a run will take, foreseen from shapes: said before round 1, and refused where not even that fits.

What a strategy keeps for itself at the server (moments of an optimiser, what a codec left out) and at clients is not
foreseen; metrics and the final model count.
"""

import logging
import math
import shutil
from pathlib import Path
from typing import NamedTuple

import torch

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.errors import ConfigError
from fedft.forecast.messages import message_bytes
from fedft.recipe import Recipe, spec_of
from fedft.reports.quantities import size
from fedft.server import best_state
from fedft.server.kept_generations import KEEP_LAST, kept
from fedft.server.message_sizes import first_round, largest_plans
from fedft.update import Spec

log = logging.getLogger(__name__)

NOTES_BYTES, LINE_BYTES = 200, 100  # of each client that is asked, in a generation and in a line of metrics.jsonl


class Need(NamedTuple):
    """Bytes of a run folder."""

    least: int
    """For the first rounds: with less none can be carried out."""
    whole: int
    """When the last round is over, with what it takes meanwhile."""


def foreseen(config: RunConfig, recipe: Recipe, layout: Layout, clients: int) -> Need:
    """What a run of so many clients will take. Raises ConfigError for options that do not fit the model.

    A state that is replaced is as large as the first one. One that only grows is added to by a round as all who are
    asked send (or their mean), and stands once; a sum of low-rank steps grows so up to the rank of what it changes.
    Where somebody plans, every round counts as the largest that may be planned. Where rounds do not wait, a version has
    `[server] buffer` updates, and states stay that turns which go on began from.
    """
    state, plans = first_round(config, recipe, layout, clients)
    rounds, asked = config.server.rounds, min(config.clients.per_round or clients, clients)
    buffer = config.server.buffer
    counted = asked if buffer is None else min(buffer, asked)  # of whom a version has updates
    plans = [*largest_plans(config, recipe, plans)]
    by_shape = {p.shape.key: recipe.spec(layout, p) for p in plans}
    uploads = [by_shape[p.shape.key] for p in plans]
    sent = sum(map(bytes_of, uploads)) // len(uploads)
    journal = counted * sum(message_bytes(u, config.codec.up) for u in by_shape.values()) // len(by_shape)
    first = bytes_of(spec_of(state.tensors)) + sum(bytes_of(spec_of(x)) for x in state.own.values())
    news, history = sent * (counted if recipe.downlink_is_increment else 1), 0
    if recipe.replaces_what_is_held or config.codec.changes:
        generation = first
    elif state.tensors:
        full = sum(4 * min(o, i) * (o + i) for o, i in layout.modules.values())
        generation = first + min(2 * rounds * news, 2 * full)  # the sum, and the last steps beside it
    else:
        generation, history = 0, rounds * news
    generation += NOTES_BYTES * asked
    generations = 1 + sum(kept(v, rounds) for v in range(rounds + 1))  # one is written aside before another goes
    generations += best_state.measure(config) is not None  # the best one stays, too
    generations += min(asked - counted, config.server.max_staleness)  # each that a turn which goes on began from
    whole = generations * generation + history + journal + rounds * asked * LINE_BYTES + sent
    whole += rounds * journal if config.server.archive else 0
    return Need(min(KEEP_LAST + 1, generations) * (first + NOTES_BYTES * asked) + news + journal, whole)


def check(config: RunConfig, recipe: Recipe, layout: Layout, clients: int, folder: Path) -> Need:
    """What the run will take; a warning is logged where the disk of `folder` has no room for all of it.

    What is there of the run already counts as room. Raises ConfigError where a run that has not begun finds no room for
    its first rounds.
    """
    need = foreseen(config, recipe, layout, clients)
    there = sum(p.stat().st_size for p in (folder / "state").rglob("*") if p.is_file())
    free = shutil.disk_usage(next(p for p in (folder, *folder.absolute().parents) if p.exists())).free
    less = f"make room, name another folder, or take fewer [server] rounds{', no archive' * config.server.archive}"
    if need.least > free + there and not any((folder / "state").glob("gen-*.fedft")):
        raise ConfigError(f"{folder}: {size(free)} of disk are free, the first rounds need {size(need.least)}; {less}")
    if need.whole > free + there:
        said = "%s: %s of disk are free, the run needs about %s up to round %d; it will pause where none is left: %s"
        log.warning(said, folder, size(free), size(need.whole), config.server.rounds, less)
    return need


def bytes_of(spec: Spec) -> int:
    """Bytes of tensors of these shapes and dtypes."""
    return sum(math.prod(t.shape) * int(getattr(torch, t.dtype).itemsize) for t in spec.values())
