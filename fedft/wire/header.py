"""The JSON fields of a message: one check for each, the same for writing and for reading.

A check, `as_run` and its like, takes any value, returns the one to use, or raises ValueError, which says what was
wanted. In writing it guards against our own mistakes, in reading against a peer's bytes.
"""

import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedft.errors import RejectedUpdate

MAX_NAME = 200  # characters of a tensor's name, so that a table's length bounds its rows
MAX_METRICS = 32  # of a message: what a client reports is kept in memory, on disk and on screen
MAX_METRIC = 1e30  # magnitude: sums and means over clients stay finite
MAX_RANKS = 1024  # modules whose rank is not the client's; they are parsed, and looked up in every plan
MAX_DEPTH = 16  # nested JSON objects and lists: whoever walks through them recurses
MAX_KEY = 64  # characters of a key of `extra`, which is shown in messages

NAME = re.compile(rf"[!#-\[\]-~]{{1,{MAX_NAME}}}")
"""Names of tensors and modules: printable ASCII without space, quote and backslash."""

_METRIC = re.compile(r"[a-z0-9_.]{1,64}")
_LABEL = re.compile(r"[0-9a-f]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{16}")

REQUIRED = object()
"""The default of a field that has none: such a field is always written, and missing it refuses the message."""

log = logging.getLogger(__name__)


class Field(NamedTuple):
    """One field of a message: an attribute of the value, and a key of the JSON object that it travels in."""

    key: str
    """Its key in the JSON object."""
    name: str
    """The attribute of `Plan`, `Update` or `Job`."""
    check: Callable[[Any], Any]
    """Any value -> the value to use; raises ValueError."""
    default: Any = REQUIRED
    """A field at its default is left out of the message."""
    code: str = "malformed"
    """Of the RejectedUpdate for a value that does not pass the check."""


def json_bytes(value: Any) -> bytes:
    """Compact UTF-8 JSON with sorted keys: equal values make equal bytes. ValueError for NaN and infinity."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def parse_json(text: memoryview) -> Any:
    """The JSON value in a peer's bytes.

    Raises ValueError for what is not JSON in UTF-8, a key twice, NaN, infinity, and an integer of 2^53 or more, which
    other languages would round; RecursionError for a value that is too deep for Python's parser.
    """
    return json.loads(bytes(text).decode(), object_pairs_hook=_object, parse_int=_integer, parse_constant=_constant)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a JSON object has a key twice")
    return out


def _integer(digits: str) -> int:
    if len(digits) > 17 or abs(int(digits)) >= 2**53:
        raise ValueError(f"integer {digits[:20]} is not below 2^53")
    return int(digits)


def _constant(literal: str) -> float:
    raise ValueError(f"{literal} is not a number")


def write_fields(value: Any, fields: tuple[Field, ...]) -> dict[str, Any]:
    """The JSON object of a value's attributes, without those at their default.

    Raises ValueError, naming the attribute, for a value that no receiver would accept.
    """
    out = {}
    for f in fields:
        try:
            if (v := getattr(value, f.name)) != f.default and (checked := f.check(v)) != f.default:
                out[f.key] = checked
        except ValueError as e:
            raise ValueError(f"{f.name}: {e}") from e
    return out


def read_fields(header: Any, fields: tuple[Field, ...]) -> dict[str, Any]:
    """Checked values by attribute, of parsed JSON from a peer; what has a default may be missing.

    Raises RejectedUpdate with the field's code for a value that does not pass or is missing, and ValueError for what is
    no object or has a key that is no field's.
    """
    want(isinstance(header, dict), "a JSON object", header)
    want(header.keys() <= (known := {f.key for f in fields}), f"no keys but {', '.join(sorted(known))}", list(header))
    values = {}
    for f in fields:
        if f.key in header:
            try:
                values[f.name] = f.check(header[f.key])
            except ValueError as e:
                raise RejectedUpdate(f.code, f"{f.name}: {str(e)[:300]}") from e
        elif f.default is REQUIRED:
            raise RejectedUpdate(f.code, f"{f.name} is missing")
    return values


def want(ok: bool, wanted: str, value: Any) -> Any:
    """`value` if `ok`, else ValueError, which says what was wanted and shows 80 characters of the value."""
    if not ok:
        raise ValueError(f"expected {wanted}, got {value!r:.80}")
    return value


def as_count(value: Any, least: int = 0) -> Any:
    """An integer from `least` to 2^53 - 1, which every JSON reader keeps exactly."""
    return want(type(value) is int and least <= value < 2**53, f"an integer from {least} to 2^53 - 1", value)


def as_flag(value: Any) -> Any:
    """True or False."""
    return want(isinstance(value, bool), "true or false", value)


def as_run(value: Any) -> Any:
    """A run's identifier: 16 lower-case hexadecimal digits."""
    return want(isinstance(value, str) and _RUN.fullmatch(value) is not None, "16 hexadecimal digits", value)


def as_label(value: Any) -> Any:
    """The label of a state, `State.label`: 8 lower-case hexadecimal digits."""
    return want(isinstance(value, str) and _LABEL.fullmatch(value) is not None, "8 hexadecimal digits", value)


def as_rate(value: Any) -> float:
    """A learning rate: a finite number >= 0, as float."""
    return float(want(_is_number(value) and value >= 0, "a finite number >= 0", value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_metrics(value: Any) -> dict[str, float]:
    """The usable metrics by name: the first MAX_METRICS in the order of their names. Others are dropped and logged.

    Usable is a number within +-MAX_METRIC under a name of [a-z0-9_.]{1,64}. A whole number comes out as int, which is
    equal and shorter to send.
    """
    want(isinstance(value, Mapping), "an object", value)
    usable = {k: float(v) for k, v in value.items() if isinstance(k, str) and _METRIC.fullmatch(k) and _is_metric(v)}
    kept = {k: usable[k] for k in sorted(usable)[:MAX_METRICS]}
    if dropped := [k for k in value if k not in kept]:
        log.warning(
            "%d metrics dropped, %.80r first: too many, not finite, too large or misnamed", len(dropped), dropped[0]
        )
    return {k: int(v) if v.is_integer() and abs(v) < 2**53 else v for k, v in kept.items()}


def _is_metric(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_METRIC


def _plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """`value` if it is JSON that can be written and read back unchanged, at most `depth` deep."""
    if isinstance(value, str):
        value.encode()  # raises on half a surrogate pair
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int | float):
        want(abs(value) < 2**53 if isinstance(value, int) else math.isfinite(value), "a number for JSON", value)
    elif depth and isinstance(value, Mapping):
        return {_plain(want(isinstance(k, str), "text as key", k)): _plain(v, depth - 1) for k, v in value.items()}
    elif depth and isinstance(value, list | tuple):
        return [_plain(v, depth - 1) for v in value]
    else:
        raise ValueError(f"expected plain JSON, not too deep, got {type(value).__name__}")
    return value


def as_table(value: Any) -> Any:
    """A JSON object of any content that can be written and read back unchanged, at most MAX_DEPTH deep."""
    return _plain(want(isinstance(value, Mapping), "an object", value))


def as_digest(value: Any) -> Any:
    """A SHA-256: 64 lower-case hexadecimal digits."""
    return want(isinstance(value, str) and _DIGEST.fullmatch(value) is not None, "64 hexadecimal digits", value)


def as_tables(value: Any) -> Any:
    """The tables of a run file: JSON objects by name."""
    tables = as_table(value)
    for name, table in tables.items():
        want(isinstance(table, dict), f"an object as table {name:.64}", table)
    return tables


def as_ranks(value: Any) -> Any:
    """LoRA ranks by module, of at most MAX_RANKS modules; 0 where there is no adapter."""
    table = as_table(value)
    want(len(table) <= MAX_RANKS, f"at most {MAX_RANKS} modules", len(table))
    for module, rank in table.items():
        want(NAME.fullmatch(module) is not None, "a module's name", module)
        as_count(rank)
    return table


def as_names(value: Any) -> tuple[str, ...]:
    """Names of modules or parts of them, at most MAX_RANKS."""
    want(isinstance(value, list | tuple) and len(value) <= MAX_RANKS, f"at most {MAX_RANKS} names", value)
    for name in value:
        want(isinstance(name, str) and NAME.fullmatch(name) is not None, "a module's name", name)
    return tuple(value)


def as_extra(value: Any) -> Any:
    """A strategy's own fields of a plan: numbers, text and truth values by name, of at most MAX_KEY characters."""
    table = as_table(value)
    for key, v in table.items():
        want(len(key) <= MAX_KEY and NAME.fullmatch(key) is not None, "a short name", key)
        want(isinstance(v, str | int | float), "a number, text or truth value", v)
    return table
