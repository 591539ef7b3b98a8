"""The table of a message: name, wire type and shape of every tensor; which codec a wire type is, and how long it is."""

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.compression import codec_names, plain
from fedft.compression.codec import Codec
from fedft.compression.codec_names import received
from fedft.errors import RejectedUpdate
from fedft.update import Download, Spec, TensorSpec
from fedft.wire.header import MAX_NAME, NAME, as_count, want

MAX_TENSORS = 8192  # rows that a peer makes us parse; an 80-layer model with all its modules adapted has about 1,100
MAX_EMPTY_DIMENSION = 2**20  # beside a zero no bytes back a dimension's size, so it has a bound of its own
ENTRIES_PER_BYTE = 256  # so that a short message cannot ask for much memory
DTYPES = {torch.float32: "float32", torch.int32: "int32", torch.uint16: "uint16"}
INTEGERS = {"int32": plain.INT32, "uint16": plain.UINT16, "numbers": plain.NUMBERS}
"""Wire types that are no codec of a float tensor."""


class Entry(NamedTuple):
    """What a message's table says of one tensor."""

    type: str
    """Wire type: the canonical name of a codec, or one of `INTEGERS`."""
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.type}{list(self.shape[:8])}"


class Form(NamedTuple):
    """How the bytes of one tensor of a table are found in a body."""

    codec: Codec
    most: int
    """Bytes that the codec makes, at most."""
    least: int
    """Bytes that the tensor takes, at least; if the codec makes fewer, zeros follow."""
    exact: bool
    """The codec makes exactly `most`; else their number stands before them, as a varint."""


@lru_cache(maxsize=1024)  # asked for every tensor of every letter
def type_of(dtype: str, codec: str) -> str:
    """The wire type of a tensor of `dtype` in a message of `codec`. Raises ValueError for other dtypes and names."""
    check.one_of(DTYPES.values(), dtype=dtype)
    if dtype == "float32":
        return received(codec).name
    return "numbers" if dtype == "uint16" and not received(codec).plain else dtype


@lru_cache(maxsize=8192)  # as often
def form(name: str, entry: Entry) -> Form:
    """How the tensor `name` of a table is written; the codec is asked for the length of its bytes.

    Raises ValueError for what has no place in the format: more than two dimensions, a wire type that nothing is called,
    an empty tensor with a dimension above MAX_EMPTY_DIMENSION.
    """
    codec = _codec(entry.type)
    if len(entry.shape) > 2 or codec is None:
        wanted = ", ".join((*codec_names.PLAIN, *INTEGERS))
        raise ValueError(f"tensor {name!r} is {entry}, wanted at most 2 dimensions of {wanted}, ...")
    n = math.prod(entry.shape)
    if n:
        return Form(codec, codec.size(name, entry.shape), -(-n // ENTRIES_PER_BYTE), codec.plain)
    if max(entry.shape) > MAX_EMPTY_DIMENSION:
        raise ValueError(f"tensor {name!r} is {entry}: empty, with a dimension above {MAX_EMPTY_DIMENSION}")
    return Form(codec, 0, 0, True)


def _codec(kind: str) -> Codec | None:
    """The codec of a wire type; None if it is none, or not written as it ought to be."""
    if kind in INTEGERS:
        return INTEGERS[kind]
    try:
        codec = received(kind)
    except ValueError:
        return None
    return codec if codec.name == kind else None


def max_table_bytes(tensors: int) -> int:
    """Bytes of the longest table of so many tensors that is parsed: 4 KiB, and 256 for each."""
    return 4096 + 256 * tensors


def describe(tensors: Tensors, codec: str) -> dict[str, Entry]:
    """The table of a message with these tensors in `codec`: an entry by name, names ascending bytewise.

    Args:
        tensors: float32, int32 or uint16, of at most two dimensions; their numbers are not looked at.
        codec: its name, `fedft.compression.codec`.
    Raises:
        ValueError: for what has no place in the format.
    """
    received(codec)
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"expected at most {MAX_TENSORS} tensors, got {len(tensors)}")
    entries = {}
    for name in sorted(tensors):
        t = tensors[name]
        if not NAME.fullmatch(name) or t.dtype not in DTYPES:
            raise ValueError(f"tensor {name!r:.220} is {t.dtype}{list(t.shape)}: not a name or type for the wire")
        entries[name] = Entry(type_of(DTYPES[t.dtype], codec), tuple(t.shape))
        form(name, entries[name])  # refuses what has no place
    return entries


def write_rows(entries: Mapping[str, Entry], codec: Codec) -> Any:
    """The table as JSON, from which `read_entries` makes equal entries.

    Short where the codec is not plain: names and types would be a tenth of a small model's update.
    """
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


def read_entries(table: Any) -> dict[str, Entry]:
    """The entries of a table that was parsed from a peer's bytes, names ascending.

    Types and shapes are well formed, and nothing else is known of them: `form` says whether they have a place in the
    format. Raises ValueError (or TypeError, LookupError) for anything else.
    """
    entries: dict[str, Entry] = {}
    last = ""
    table = _long_rows(table)
    want(isinstance(table, list) and len(table) <= MAX_TENSORS, f"a JSON array of at most {MAX_TENSORS}", table)
    for row in table:
        want(isinstance(row, list) and len(row) >= 2, "[name, wire type, dimension...]", row)
        name, kind, *shape = row
        want(isinstance(name, str) and NAME.fullmatch(name) is not None, "a tensor's name", name)
        want(name > last, f"names ascending after {last!r}", name)
        want(isinstance(kind, str) and codec_names.NAME.fullmatch(kind) is not None, "a wire type", kind)
        entries[name] = Entry(kind, tuple(as_count(n) for n in shape))
        last = name
    return entries


def check_fit(entries: Mapping[str, Entry], spec: Spec, codec: str) -> None:
    """Raise RejectedUpdate `spec_mismatch` unless the entries are exactly the tensors of `spec`, sent in `codec`.

    Names, shapes and wire types must agree; the first dimension of a tensor that is `at_most` may be shorter.
    """
    for name in sorted(entries.keys() | spec.keys()):
        found, t = entries.get(name), spec.get(name)
        if t is None:
            wanted = "no such tensor"
        elif found is None or found.type != type_of(t.dtype, codec) or not _same_shape(found.shape, t):
            first = "<=" if t.at_most else ""
            wanted = f"{type_of(t.dtype, codec)}[{first}{str(list(t.shape))[1:]}"
        else:
            continue
        message = f"tensor {name!r} is {found or 'missing'}, wanted {wanted}; do both sides have the same job?"
        raise RejectedUpdate("spec_mismatch", message)


def check_download(entries: Mapping[str, Entry], download: Download | None, codec: str) -> None:
    """Raise RejectedUpdate `spec_mismatch` unless every entry is a tensor that may come down, sent in `codec`.

    `download` None: tensors of any name and shape may. None has to come.
    """
    types = {type_of(dtype, codec) for dtype in DTYPES.values()}
    for name, found in entries.items():
        if found.type not in types:
            wanted = f"one in {codec}"
        elif download is None:
            continue
        elif (t := download(name)) is None:
            wanted = "no such tensor"
        elif found.type != type_of(t.dtype, codec) or not _within(found.shape, t):
            wanted = f"{'at most ' if t.at_most else ''}{Entry(type_of(t.dtype, codec), t.shape)}"
        else:
            continue
        message = f"tensor {name!r} is {found}, wanted {wanted}; do both sides have the same job?"
        raise RejectedUpdate("spec_mismatch", message)


def decoded_bytes(entries: Mapping[str, Entry]) -> int:
    """Bytes of the entries' tensors in memory, when they are decoded."""
    return sum(math.prod(e.shape) * (2 if e.type in ("uint16", "numbers") else 4) for e in entries.values())


def _within(found: tuple[int, ...], t: TensorSpec) -> bool:
    if not t.at_most:
        return found == t.shape
    return len(found) == len(t.shape) and all(n <= most for n, most in zip(found, t.shape, strict=True))


def _same_shape(found: tuple[int, ...], t: TensorSpec) -> bool:
    if not t.at_most:
        return found == t.shape
    return len(found) == len(t.shape) and found[1:] == t.shape[1:] and found[0] <= t.shape[0]
