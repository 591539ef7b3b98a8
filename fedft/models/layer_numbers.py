"""Layers of a model by their numbers: `[model] layers = "0-3, 8"`.

A name is in the layer whose number is the first component of digits in it: `model.layers.3.mlp.experts.5` in layer 3.
An encoder and a decoder each have a layer 3.
"""

from collections.abc import Sequence

from torch import nn

from fedft import check
from fedft.errors import DataError


def kept(names: Sequence[str], model: nn.Module, numbers: str | None) -> list[str]:
    """Those of the names that are in the layers of these numbers; all of them where `numbers` is None.

    What is in no layer is not kept. Raises DataError where the model has no layers, or none of one of the numbers.
    """
    if numbers is None:
        return list(names)
    there = {at for n, _ in model.named_modules() if (at := number_of(n)) is not None}
    wanted = check.number_ranges("layers", numbers)
    if lost := [r for r in wanted if not there.issuperset(r[:: max(1, len(r) - 1)])]:
        has = f"layers {min(there)} to {max(there)}" if there else "no numbered layers"
        raise DataError(f"[model] layers: there is no layer {lost[0][-1]}; this model has {has}")
    return [n for n in names if any(number_of(n) in r for r in wanted)]


def number_of(name: str) -> int | None:
    """The number of the layer that a name is in; None for one that is in no layer."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)
