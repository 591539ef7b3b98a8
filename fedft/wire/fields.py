"""The JSON header of a message: one check per field, the same for writing and for reading."""

import json
import logging
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fedft.errors import RejectedUpdate

MAX_NAME = 200

MAX_METRICS = 32

MAX_RANKS = 1024  # modules whose rank is not the client's; they travel in the header
MAX_METRIC = 1e30  # sums and means of what clients say stay finite

NAME = re.compile(rf"[!#-\[\]-~]{{1,{MAX_NAME}}}")

_METRIC = re.compile(r"[a-z0-9_.]{1,64}")

_LABEL = re.compile(r"[0-9a-f]{8}")

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[0-9a-f]{16}")

REQUIRED = object()

log = logging.getLogger(__name__)


class Field(NamedTuple):
    key: str
    name: str
    check: Callable[[Any], Any]
    default: Any = REQUIRED
    code: str = "malformed"


def json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def parse_json(text: memoryview) -> Any:
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


def write(value: Any, fields: tuple[Field, ...]) -> dict[str, Any]:
    out = {}
    for f in fields:
        try:
            if (v := getattr(value, f.name)) != f.default and (checked := f.check(v)) != f.default:
                out[f.key] = checked
        except ValueError as e:
            raise ValueError(f"{f.name}: {e}") from e
    return out


def read(header: Any, fields: tuple[Field, ...]) -> dict[str, Any]:
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
    if not ok:
        raise ValueError(f"expected {wanted}, got {value!r:.80}")
    return value


def as_count(value: Any, least: int = 0) -> Any:
    return want(type(value) is int and least <= value < 2**53, f"an integer from {least} to 2^53 - 1", value)


def as_flag(value: Any) -> Any:
    return want(isinstance(value, bool), "true or false", value)


def as_run(value: Any) -> Any:
    return want(isinstance(value, str) and _RUN.fullmatch(value) is not None, "16 hexadecimal digits", value)


def as_label(value: Any) -> Any:
    return want(isinstance(value, str) and _LABEL.fullmatch(value) is not None, "8 hexadecimal digits", value)


def as_rate(value: Any) -> float:
    return float(want(_is_number(value) and value >= 0, "a finite number >= 0", value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def as_metrics(value: Any) -> dict[str, float]:
    """The usable metrics by name; a whole number as int, which is equal and shorter to send."""
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


def _plain(value: Any, depth: int = 16) -> Any:
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
    return _plain(want(isinstance(value, Mapping), "an object", value))


def as_digest(value: Any) -> Any:
    """A SHA-256."""
    return want(isinstance(value, str) and _DIGEST.fullmatch(value) is not None, "64 hexadecimal digits", value)


def as_tables(value: Any) -> Any:
    """JSON objects by name."""
    tables = as_table(value)
    for name, table in tables.items():
        want(isinstance(table, dict), f"an object as table {name:.64}", table)
    return tables


def as_ranks(value: Any) -> Any:
    """Ranks by module, each at least 1."""
    table = as_table(value)
    want(len(table) <= MAX_RANKS, f"at most {MAX_RANKS} modules", len(table))
    for module, rank in table.items():
        want(NAME.fullmatch(module) is not None, "a module's name", module)
        as_count(rank, 1)
    return table


def as_extra(value: Any) -> Any:
    table = as_table(value)
    for key, v in table.items():
        want(len(key) <= 64 and NAME.fullmatch(key) is not None, "a short name", key)
        want(isinstance(v, str | int | float), "a number, text or truth value", v)
    return table
