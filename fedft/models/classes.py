"""The classes of a classifier: their names in the model's config, and heads that have them in another order."""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedft import check
from fedft.errors import DataError

log = logging.getLogger(__name__)

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class whose name it was not told."""


def of_config(config: Any) -> list[str]:
    """The names of a model's classes in order of number, as its config has them."""
    return _in_order(config.id2label)


def of_folder(folder: Path) -> list[str] | None:
    """The names of the classes in a folder's `config.json`; None where it says none, or cannot be read."""
    try:
        return _in_order(json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _in_order(by_number: Mapping[Any, Any]) -> list[str]:
    return [str(by_number[k]) for k in sorted(by_number, key=int)]


def name(config: Any, labels: Sequence[str]) -> None:
    """Write the names of the classes into a model's config, one class for each row."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    config.problem_type = "single_label_classification"


def order(own: Sequence[str], labels: Sequence[str], source: str) -> list[int]:
    """The place in `own` of each of `labels`: which row of the head is whose. Capitals do not matter where all agree.

    Args:
        own: classes of the head at `source`, in the order of its rows.
        labels: `[model] labels`.
    Raises:
        DataError: they are not the same names.
    """
    if list(own) == list(labels):
        return list(range(len(own)))
    if len(own) == len(labels) and all(UNNAMED.fullmatch(n) for n in own):
        log.warning("[model] labels: the head of %r does not name its classes; they are taken in this order", source)
        return list(range(len(own)))
    for form in (str, str.casefold):
        theirs, ours = [form(n) for n in own], [form(n) for n in labels]
        if len(set(theirs)) == len(own) and sorted(theirs) == sorted(ours):
            return [theirs.index(n) for n in ours]
    raise DataError(
        f"[model] labels: the head of {source!r} has {len(own)} other classes, {check.few([*map(repr, own)], 8)}; "
        f"wanted these, or a checkpoint without a head"
    )


def fit(model: nn.Module, own: Sequence[str], labels: Sequence[str], source: str, drawn: Collection[str] = ()) -> None:
    """Put the rows of the head's last layer, whose classes are `own`, into the order of `labels`.

    A head that is drawn (its parameters are in `drawn`) has no order yet. Raises DataError as `order` does, and for a
    head in another order whose last layer is not known.
    """
    inside = str(getattr(model, "base_model_prefix", ""))
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[0] != inside}
    last = [n for n, m in linear.items() if m.out_features == len(labels)]
    if last and f"{last[-1]}.weight" in drawn:
        return
    places = order(own, labels, source)
    if places == list(range(len(labels))):
        return
    if not last:
        raise DataError(
            f"[model] labels: the head of {source!r} has its classes in another order; give them in its own"
        )
    with torch.no_grad():
        for p in linear[last[-1]].parameters():
            p.copy_(p[places].clone())
