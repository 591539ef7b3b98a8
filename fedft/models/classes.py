"""The classes of a classifier: their names in the model's config, and heads that have them in another order.

"Classes" stands for the labels and the outputs of other problem types, too: what the rows of a head are for.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedft import check
from fedft.data.labels import MULTI, REGRESSION, SINGLE
from fedft.errors import DataError

log = logging.getLogger(__name__)

UNNAMED = re.compile(r"LABEL_\d+")
"""What transformers calls a class whose name it was not told."""
NOUNS = {SINGLE: "classes", MULTI: "labels", REGRESSION: "outputs"}


@dataclass(frozen=True)
class Classes:
    """What the rows of a head are called, in their order, and what they were trained for."""

    names: Sequence[str]
    problem_type: str = SINGLE
    """See `fedft.data.labels`."""

    @property
    def unnamed(self) -> bool:
        """Whether nobody has named them."""
        return all(UNNAMED.fullmatch(n) for n in self.names)


def of_config(config: Any) -> Classes:
    """The classes of a model by its config. Where that does not say a problem type, as transformers takes it."""
    names = _in_order(config.id2label)
    return Classes(names, getattr(config, "problem_type", None) or _guessed(names))


def of_folder(folder: Path) -> Classes | None:
    """The classes by a folder's `config.json`; None where it says none, or cannot be read."""
    try:
        said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = _in_order(said["id2label"])
        return Classes(names, str(said.get("problem_type") or _guessed(names)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _in_order(by_number: Mapping[Any, Any]) -> list[str]:
    return [str(by_number[k]) for k in sorted(by_number, key=int)]


def _guessed(names: Sequence[str]) -> str:
    """The problem type of a head that says none."""
    return REGRESSION if len(names) == 1 else SINGLE


def name(config: Any, own: Classes, wanted: Classes, source: str) -> None:
    """Write the names of the classes, one for each row of the head, and their problem type into a model's config.

    Raises DataError as `order` does where the checkpoint at `source` has a head of another number of classes, `own`.
    """
    if len(own.names) != len(wanted.names) and "SequenceClassification" in " ".join(config.architectures or ()):
        order(own, wanted, source)
    config.id2label = dict(enumerate(wanted.names))
    config.label2id = {label: i for i, label in enumerate(wanted.names)}
    config.problem_type = wanted.problem_type


def order(own: Classes, wanted: Classes, source: str) -> list[int]:
    """The place in `own` of each of `wanted`: which row of the head is whose. Capitals do not matter where all agree.

    A head that was trained for one class of several is taken for several labels, and the other way round, where it
    names them: that is said.

    Args:
        own: classes of the head at `source`, in the order of its rows.
        wanted: those of the run's `[model]`.
    Raises:
        DataError: they are not the same names, or a head for classes is wanted for numbers, or the other way round.
    """
    places = _places(own, wanted)
    if places is None:
        noun = NOUNS[wanted.problem_type]
        raise DataError(
            f"[model] labels: the head of {source!r} has {len(own.names)} other {noun}, "
            f"{check.few([*map(repr, own.names)], 8)}; wanted these, or a checkpoint without a head"
        )
    if (kinds := {own.problem_type, wanted.problem_type}) > {wanted.problem_type}:
        trained = f"[model] problem_type: the head of {source!r} was trained for {own.problem_type}"
        if REGRESSION in kinds or own.unnamed:
            raise DataError(f"{trained}, not {wanted.problem_type}; wanted that, or a checkpoint without a head")
        log.warning("%s; it goes on as %s, since it has the same labels", trained, wanted.problem_type)
    elif own.unnamed and len(places) > 1 and list(own.names) != list(wanted.names):
        log.warning("[model] labels: the head of %r does not name its classes; they are taken in this order", source)
    return places


def _places(own: Classes, wanted: Classes) -> list[int] | None:
    """The place in `own` of each of `wanted`, in order where `own` has no names; None where they do not agree."""
    same = len(own.names) == len(wanted.names)
    if list(own.names) == list(wanted.names) or (same and own.unnamed):
        return list(range(len(own.names)))
    for form in (str, str.casefold):
        theirs, ours = [form(n) for n in own.names], [form(n) for n in wanted.names]
        if len(set(theirs)) == len(theirs) and sorted(theirs) == sorted(ours):
            return [theirs.index(n) for n in ours]
    return None


def fit(model: nn.Module, own: Classes, wanted: Classes, source: str, drawn: Collection[str] = ()) -> None:
    """Put the rows of the head's last layer, whose classes are `own`, into the order of `wanted`.

    A head that is drawn (its parameters are in `drawn`) has no order yet. Raises DataError as `order` does, and for a
    head in another order whose last layer is not known.
    """
    inside = str(getattr(model, "base_model_prefix", ""))
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.split(".")[0] != inside}
    last = [n for n, m in linear.items() if m.out_features == len(wanted.names)]
    if last and f"{last[-1]}.weight" in drawn:
        return
    places = order(own, wanted, source)
    if places == list(range(len(places))):
        return
    if not last:
        raise DataError(
            f"[model] labels: the head of {source!r} has its classes in another order; give them in its own"
        )
    with torch.no_grad():
        for p in linear[last[-1]].parameters():
            p.copy_(p[places].clone())
