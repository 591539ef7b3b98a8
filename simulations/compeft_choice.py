"""The two numbers of the codec `compeft`, chosen on held-out rows as in the paper: what a finished run learned, coded.

    change    values of the newest state - those of version 0, all that the run learned
    tried     version 0 + what the other side sees of the change in `compeft:DENSITY,SCALE`, measured on held-out rows

A codec has no model at hand, so the choice is made where both are: on a run folder, for the runs that come. Losses
reported on rows that decided are a little too good; a run that is to be published keeps others.

Yadav, Choshen, Raffel, Bansal, 2023, arXiv:2311.13171; see `fedft.compression.compeft`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.errors import ConfigError
from fedft.reports import columns
from fedft.simulations import workplace
from fedft.training import evaluate
from fedft.update import Update
from fedft.wire import messages

DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)  # the paper's grid, as is SCALES
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def choose(
    folder: Path, densities: Sequence[float] = DENSITIES, scales: Sequence[float] = SCALES
) -> tuple[str, list[dict[str, Any]]]:
    """(the codec whose loss is the least, what was measured) of a run's change; of equals the one of fewest bytes.

    Args:
        folder: of the run.
        densities: shares of the entries that are kept.
        scales: multiples of the standard deviation that are sent.
    Returns:
        rows of `codec`, `bytes` of the change, `loss` and `accuracy`: first that of the change as it is ("fp32"), then
        all pairs.
    Raises:
        ConfigError: no run folder, no held-out rows, or a strategy whose change is not what its clients send.
    """
    place, state = workplace.reopen(folder)
    if place.recipe.upload_kind != "changes" or place.recipe.personal:
        raise ConfigError(
            f"--compeft: {folder} is a run of {place.recipe.name}, which does not send changes of one model; "
            "wanted one on which [codec] up = 'compeft:0.1,1' goes, as fedit"
        )
    if not any(c.test_rows for c in place.clients.values()):
        raise ConfigError(f"{folder}: no client has held-out rows; see [data] holdout and test")
    last = place.handle.read()
    rank = 0 if place.recipe.space.rank_free else max(place.config.ranks())
    place.stand(place.recipe.first_state(place.layout, rank, place.config.server.seed))
    first = place.handle.read()
    change = tensors.sub(last, first)
    if state.version == 0 or not any(bool(x.any()) for x in change.values()):
        raise ConfigError(f"--compeft: {folder} has learned nothing yet")
    names = ["fp32", *(f"compeft:{q:g},{c:g}" for q in densities for c in scales)]
    rows = [_measured(place, first, change, name) for name in names]
    best = min(rows[1:], key=lambda row: (row["loss"], row["bytes"]))
    return best["codec"], rows


def of_each_density(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `choose` measured, in short: the change as it is, and of every density the row of the least loss."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        density = row["codec"].partition(",")[0]
        if density not in best or row["loss"] < best[density]["loss"]:
            best[density] = row
    return list(best.values())


def _measured(place: workplace.Workplace, first: Tensors, change: Tensors, codec: str) -> dict[str, Any]:
    """The row of one codec; the model is left at what it was measured with."""
    seed = place.config.server.seed
    place.handle.write(tensors.add(first, messages.roundtrip(change, codec, seed)))
    plain = replace(place.config.eval, metrics=[])
    found = [
        evaluate.measure(place.handle, place.base, c.test_rows, plain) for c in place.clients.values() if c.test_rows
    ]
    size = len(messages.encode_update(Update(change, 1), codec, seed))
    mean = columns.averaged(found)
    return {"codec": codec, "bytes": size, "loss": mean["loss"], "accuracy": mean["accuracy"]}
