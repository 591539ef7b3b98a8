"""Bounds that an audit must keep before a model is given out: `[audit] gate = ["exposure=4", "auc=0.6"]`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedft import check
from fedft.reports import summary_file

FIGURES = {
    "exposure": "bits of planted secrets, the mean of the most exposed number of repeats",
    "auc": "of membership by calibrated loss",
    "epsilon_lower": "the lower bound on epsilon",
    "verbatim": "share of planted secrets that generation wrote out",
}
"""What a bound may be for; each is a number of which less is better."""
OF_CANARIES = ("exposure", "epsilon_lower", "verbatim")


def bounds(gate: Sequence[str]) -> dict[str, float]:
    """The largest value that each figure may have, by its name, of texts "figure=number". Raises ValueError.

    >>> bounds(["exposure=4", "auc=0.6"])
    {'exposure': 4.0, 'auc': 0.6}
    """
    found: dict[str, float] = {}
    for text in gate:
        name, most = check.named_number(text, FIGURES)
        if not 0 <= most < math.inf:
            raise ValueError(f"[audit] gate has {text!r}, wanted FIGURE=NUMBER with one of {', '.join(FIGURES)}")
        found[name] = most
    return found


def broken(figures: Mapping[str, float], most: Mapping[str, float]) -> str:
    """Which figures are above their bounds, or were not to be had, in one line; "" where all bounds are kept."""
    said = []
    for name, bound in most.items():
        found = figures.get(name, math.nan)
        if math.isnan(found):
            said.append(f"{name} could not be measured, at most {bound:g} is allowed")
        elif found > bound:
            said.append(f"{name} is {found:.4g}, at most {bound:g} is allowed")
    return "; ".join(said)


def held_back(folder: Path) -> str:
    """Why the model of the finished run in a folder is held back; "" where it is not, or was released by hand."""
    return str(summary_file.read(folder).get("held_back", ""))  # not finished, or damaged: there is no verdict
