"""Lines of plain text on what a run's privacy will cost; `fedft.forecast.privacy_cost` explains the facts."""

from collections.abc import Mapping
from typing import Any

MEANINGLESS = 20.0
"""Epsilon above which nothing is promised that a person would call privacy: odds may change by a factor of e^20."""
SUMS = {
    "on": "secure: the server learns sums of updates, and no single one",
    "clear": "as with secagg = 'on', but without masks: nothing is hidden",
}


def lines(cost: Mapping[str, Any]) -> list[str]:
    """Each a name and a text, in 80 columns; none where nothing is protected."""
    if not cost:
        return []
    secure = SUMS.get(cost["secagg"])
    told = [f"sums     {secure}"] if secure else []
    if cost["mode"] == "none":
        return told
    if cost["epsilon"] is None:
        told.append(f"privacy  {cost['mode']}, of one {cost['unit']}: epsilon none ({cost['epsilon_why']})")
    else:
        rounds = f" in {cost['after'][-1][0]} rounds" if cost["after"] else ", at every client"
        spent = f"epsilon {_short(cost['epsilon'])} at delta {cost['delta']:g}{rounds}"
        told.append(f"privacy  {cost['mode']}, of one {cost['unit']}: {spent}")
    return [*told, *_colluding(cost), *_epsilons(cost), *_noise(cost)]


def _colluding(cost: Mapping[str, Any]) -> list[str]:
    """Against whom epsilon holds, where each client adds a share of the noise."""
    if not cost["colluding"]:
        return []
    count, epsilon = cost["colluding"]
    told = ["against  the server, too: it opens noisy sums only"]
    return told + [f"         with {count} clients that tell it their noise: {_short(epsilon)}"] * (count > 0)


def _epsilons(cost: Mapping[str, Any]) -> list[str]:
    """What part of the run costs, what other noise would cost, and what clients of few records pay."""
    told = []
    if cost["after"]:
        after = "".join(f"{_short(value)} after {rounds}, " for rounds, value in cost["after"][:-1])
        around = ", ".join(f"{_short(value)} at z {z:.3g}" for z, value in cost["around"][::2])
        told.append(f"epsilon  {after}{around}")
    if cost["ends"] is not None:
        told.append(f"         [privacy] max_epsilon ends the run after {cost['ends']} rounds")
    if by_rows := cost["by_rows"]:
        alike = len({c["noise_multiplier"] for c in by_rows}) == 1
        each = (_short(c["epsilon"]) if alike else f"z {c['noise_multiplier']:.3g}" for c in by_rows)
        told.append("clients  " + ", ".join(f"{c['rows']:,} rows: {x}" for c, x in zip(by_rows, each, strict=True)))
    if cost["epsilon"] is not None and cost["epsilon"] > MEANINGLESS:
        told.append(f"         above {MEANINGLESS:g} next to nothing is promised; fewer rounds, or more noise")
    return told


def _noise(cost: Mapping[str, Any]) -> list[str]:
    """How large the noise is beside what can be learned."""
    if (ratio := cost["noise_to_signal"]) is None:
        return []
    where = f"z {cost['noise_multiplier']:.3g}, clip {cost['clip']:g}"
    told = [f"noise    {where}: {_short(ratio)} times the largest signal; {cost['verdict']}"]
    if ratio > 10:
        more = "more clients a round" if cost["unit"] == "client" else "larger batches"
        told.append(f"         fewer numbers (ffa_lora, lower rank) or {more} would help")
    return told


def _short(x: float) -> str:
    """Three digits, or a whole number.

    >>> _short(7.967), _short(19300.4)
    ('7.97', '19,300')
    """
    return f"{x:.3g}" if x < 100 else f"{x:,.0f}"
