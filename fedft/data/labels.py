"""What a classifier learns of a record: its class, which labels it has, or numbers to fit. L labels or outputs.

    [model] problem_type          the record's label                            `read` gives
    single_label_classification   "spam", or the class's place                  the number of the class
    multi_label_classification    ["toxic", "rude"], [] or places               L booleans
                                  [true, false, true], [0, 1, 0], L fields
    regression                    3.5, [3.5, 0.1], L fields                     L floats

A cell of a CSV holds a list as JSON. A label that is none of these is a DataError of one line that says where it is.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from fedft import check
from fedft.config import Data, Model
from fedft.data.records import value_of
from fedft.errors import DataError
from fedft.models import tasks

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
"""The values of `[model] problem_type`, in transformers' words."""
NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")
LARGEST = 1e18
"""The largest number to fit: the square of an error of 2e19 is no float32."""
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""What a field of its own says of a label, in small letters."""


def check_names(model: Model, data: Data) -> None:
    """Raise ValueError where `[model] problem_type` and `labels` and `[data] label` make no sense together."""
    names, kind, fields = model.labels, model.problem_type, data.label
    if len(set(names)) < len(names):
        raise ValueError(f"expected labels that are distinct, got {names}")
    if tasks.of(model.task).generates:
        if kind != SINGLE:
            raise ValueError(
                f"[model] problem_type = {kind!r} is for task 'sequence-classification', not {model.task!r}"
            )
        return
    if len(names) < (least := 2 if kind == SINGLE else 1):
        many = {1: "one", 2: "two"}[least]
        more = "" if kind == SINGLE else f" of problem_type {kind}"
        raise ValueError(f"task sequence-classification{more} needs [model] labels, at least {many}")
    if not isinstance(fields, list):
        return
    if kind == SINGLE:
        raise ValueError(
            f"[data] label = {check.quoted(fields)} are several fields; a record of problem_type {SINGLE} has one"
        )
    if len(fields) != len(names) or len(set(fields)) < len(fields):
        raise ValueError(
            f"[data] label = {check.quoted(fields)}: wanted a field for each of the {len(names)} [model] labels, in "
            f"their order, or one field with a list"
        )


def missing(row: Mapping[str, Any], fields: str | Sequence[str], names: Sequence[str], where: str) -> bool:
    """Whether one of the fields of a record's label is null or empty; arguments and errors as of `read`.

    An empty list of labels is none of them, and not missing; an empty text may be the name of a class.
    """
    values = [value_of(row, field, where) for field in ([fields] if isinstance(fields, str) else fields)]
    return any(value is None or (value == "" and "" not in names) for value in values)


def read(
    row: Mapping[str, Any], fields: str | Sequence[str], names: Sequence[str], kind: str, where: str
) -> int | tuple[float, ...]:
    """What is learned of a record: the number of its class, or L booleans or floats in the order of `names`.

    Args:
        row: the record, fields by name.
        fields: the field that holds the label, or one for each of `names`; names of fields, never templates.
        names: of the L classes, labels or outputs. Where one of them reads as a number, numbers are names and never
            places.
        kind: SINGLE, MULTI or REGRESSION.
        where: name of the row in error messages.
    Raises:
        DataError: a field is missing, or holds something else; of names the nearest is suggested.
    """
    if not isinstance(fields, str):
        if kind == SINGLE or len(fields) != len(names):  # of a site's own file
            raise DataError(
                f"{where}: [data] label = {[*fields]}, wanted {'one field' if kind == SINGLE else [*names]}"
            )
        each = _number if kind == REGRESSION else _flag
        return tuple(each(value_of(row, field, where), f"{where}: {field!r}") for field in fields)
    value, what = value_of(row, fields, where), f"{where}: {fields!r}"
    if kind == SINGLE:
        if isinstance(value, list):
            raise DataError(f"{what} is a list, wanted one label; [model] problem_type = {MULTI!r} takes lists")
        return _place(value, names, what)
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _parsed(value, what)
    if kind == MULTI:
        return _labels(value, names, what)
    values = value if isinstance(value, list | tuple) else [value]
    if len(values) != len(names):
        wanted = "a number" + (f" for each of {check.few([*map(repr, names)])}" if len(names) > 1 else "")
        raise DataError(f"{what} is {check.quoted(value)}, wanted {wanted}")
    return tuple(_number(v, what) for v in values)


def _place(value: Any, names: Sequence[str], what: str) -> int:
    """The number of the class that a value names, or is the place of."""
    if isinstance(value, list | dict):
        raise DataError(f"{what} has {check.quoted(value)}, which is not a label")
    text = "" if value is None else str(value)
    if text in names:
        return names.index(text)
    if type(value) is int and 0 <= value < len(names) and not _numbers_are_names(names):
        return value
    raise DataError(f"{what} is {text!r}, not a label{check.nearest(text, names)}")


def _labels(value: Any, names: Sequence[str], what: str) -> tuple[bool, ...]:
    """Of each label whether a list has it; see `read`."""
    if not isinstance(value, list | tuple):
        raise DataError(f"{what} is {check.quoted(value)}, wanted a list of labels; [] is none of them")
    if (flags := _flags(value, names, what)) is not None:
        return flags
    places = [_place(v, names, what) for v in value]
    if twice := [v for v, at in zip(value, places, strict=True) if places.count(at) > 1]:
        raise DataError(f"{what} has the label {twice[0]!r} more than once")
    return tuple(i in places for i in range(len(names)))


def _flags(values: Sequence[Any], names: Sequence[str], what: str) -> tuple[bool, ...] | None:
    """What a list says that has a 0 or 1, or false or true, for each label; None of a list that names labels.

    Three or more 0 and 1 are no places, which a list has once; two may be either, and are refused.
    """
    if len(values) != len(names) or not all(type(v) in (bool, int, float) and v in (0, 1) for v in values):
        return None
    if not all(isinstance(v, bool) for v in values):
        if _numbers_are_names(names):
            return None
        if len(names) < 3 and any(type(v) is int for v in values):
            raise DataError(
                f"{what} is {[*values]}, which may be the places of labels, or a 0 or 1 for each; wanted their names, "
                f"or true and false"
            )
    return tuple(v == 1 for v in values)


def _flag(value: Any, what: str) -> bool:
    """Whether a field of its own says that the record has the label."""
    found = FLAGS.get(str(value).strip().casefold())
    if found is None:
        raise DataError(f"{what} is {check.quoted(value)}, wanted 0 or 1, or false or true")
    return found


def _number(value: Any, what: str) -> float:
    """A number, also one that is text, as all cells of a CSV are; at most LARGEST."""
    try:
        usable = (
            isinstance(value, int | float | Decimal | str) and not isinstance(value, bool) and "_" not in str(value)
        )
        found = float(value) if usable else None
    except (ValueError, OverflowError):
        found = None
    if found is None or not abs(found) <= LARGEST:  # NaN is not, either
        raise DataError(f"{what} is {check.quoted(value)}, wanted a number, at most {LARGEST:g}")
    return found


def _parsed(text: str, what: str) -> Any:
    """The list that a text is the JSON of."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise DataError(f'{what} is {check.quoted(text)}, not a list in JSON, as ["a", "b"] is') from e


def _numbers_are_names(names: Sequence[str]) -> bool:
    """Whether one of the labels reads as a number."""
    return any(map(NUMBER.fullmatch, names))
