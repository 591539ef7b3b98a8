"""The table of a message: name, wire type and shape of every tensor."""

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from fedft.arithmetic.tensors import Tensors
from fedft.compression import plain
from fedft.compression.codec import Codec, parse
from fedft.errors import RejectedUpdate
from fedft.update import Spec, TensorSpec
from fedft.wire.fields import MAX_NAME, NAME, as_count, want

MAX_TENSORS = 8192  # an 80-layer model with all its modules adapted has about 1,100

_TYPE = re.compile(r"[a-z0-9][a-z0-9:.|+-]{0,31}")


def max_table_bytes(tensors: int) -> int:
    return 4096 + 256 * tensors


def describe(tensors: Tensors, codec: str) -> dict[str, plain.Entry]:
    parse(codec)
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"expected at most {MAX_TENSORS} tensors, got {len(tensors)}")
    entries = {}
    for name in sorted(tensors):
        t = tensors[name]
        if not NAME.fullmatch(name) or t.dtype not in plain.DTYPES:
            raise ValueError(f"tensor {name!r:.220} is {t.dtype}{list(t.shape)}: not a name or type for the wire")
        entries[name] = plain.Entry(plain.type_of(plain.DTYPES[t.dtype], codec), tuple(t.shape))
        plain.size(name, entries[name])  # refuses what has no place in the format
    return entries


def write_rows(entries: Mapping[str, plain.Entry], codec: Codec) -> Any:
    """The table, short where the codec is not plain: names and types would be a tenth of a small model's update."""
    if codec.plain:
        return [[name, e.type, *e.shape] for name, e in entries.items()]
    rows, above = [], ""
    for name, e in entries.items():
        p = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(above, name, strict=False)))
        rows.append([p, name[p:], *([] if e.type == codec.name else [e.type]), *e.shape])
        above = name
    return {"c": codec.name, "t": rows}


def _long_rows(table: Any) -> Any:
    """A table as rows of [name, wire type, dimension...]."""
    if not isinstance(table, dict):
        return table
    codec, rows, above, out = table.pop("c"), table.pop("t"), "", []
    want(not table and isinstance(codec, str) and isinstance(rows, list), "a codec and rows", table)
    for p, rest, *more in rows[: MAX_TENSORS + 1]:
        want(as_count(p) <= len(above) and isinstance(rest, str), "the rest of a name", [p, rest])
        above = want(len(name := above[:p] + rest) <= MAX_NAME, "a tensor's name", name)
        out.append([name, *more] if more and isinstance(more[0], str) else [name, codec, *more])
    return out


def read_entries(table: Any) -> dict[str, plain.Entry]:
    entries: dict[str, plain.Entry] = {}
    last = ""
    table = _long_rows(table)
    want(isinstance(table, list) and len(table) <= MAX_TENSORS, f"a JSON array of at most {MAX_TENSORS}", table)
    for row in table:
        want(isinstance(row, list) and len(row) >= 2, "[name, wire type, dimension...]", row)
        name, kind, *shape = row
        want(isinstance(name, str) and NAME.fullmatch(name) is not None, "a tensor's name", name)
        want(name > last, f"names ascending after {last!r}", name)
        want(isinstance(kind, str) and _TYPE.fullmatch(kind) is not None, "a wire type", kind)
        entries[name] = plain.Entry(kind, tuple(as_count(n) for n in shape))
        last = name
    return entries


def check_fit(entries: Mapping[str, plain.Entry], spec: Spec, codec: str) -> None:
    for name in sorted(entries.keys() | spec.keys()):
        found, t = entries.get(name), spec.get(name)
        if t is None:
            wanted = "no such tensor"
        elif found is None or found.type != plain.type_of(t.dtype, codec) or not _same_shape(found.shape, t):
            first = "<=" if t.at_most else ""
            wanted = f"{plain.type_of(t.dtype, codec)}[{first}{str(list(t.shape))[1:]}"
        else:
            continue
        message = f"tensor {name!r} is {found or 'missing'}, wanted {wanted}; do both sides have the same job?"
        raise RejectedUpdate("spec_mismatch", message)


def _same_shape(found: tuple[int, ...], t: TensorSpec) -> bool:
    if not t.at_most:
        return found == t.shape
    return len(found) == len(t.shape) and found[1:] == t.shape[1:] and found[0] <= t.shape[0]
