"""`Plan`, `Update` and `Job` <-> bytes. Pure functions; this docstring is the format.

    frame    magic "FDFT" | protocol u16 | kind u8 | header length u16 | table length u32 | header | table | body
    kind     1 plan, 2 update, 3 job; all numbers little endian, nothing is padded or aligned
    header   JSON object of at most 4,096 bytes with one-letter keys; a field at its default is left out
               update  r run, t round, a attempt, n num_examples, m metrics
               plan    r run, t round, v version, y label, h have, z have_label, a attempt, e evaluate, k rank, s steps,
                       l learning_rate, c counted, x extra
               job     r run, s seed
    table    JSON array of at most 4 KiB + 256 bytes per tensor: [name, wire type, dimension...] for each tensor, names
             ascending bytewise, hence none twice; at most 8,192 tensors, which is also what bounds a plan's table
             in a job: JSON object of strategy, local, model, codec, data, eval, at most 16 deep; all at most 64 KiB
             of other than plain codecs: {"c": codec, "t": rows}, a row [p, rest of name, wire type, dimension...] whose
             name begins with p characters of the name above, and whose wire type is left out where it is the codec
    body     the tensors' bytes in the table's order, row-major, exactly as many as the table implies, where it does,
             else as many as a varint before them says; a job has none

JSON is compact UTF-8 with sorted keys: equal values make equal bytes. Refused in it: a key twice, an unknown key, NaN
and Infinity, an integer of 2^53 or more, half a surrogate pair in a value that is used. Metrics beyond
+-1e30, not named [a-z0-9_.]{1,64} or beyond the first 32 by name are dropped. Names of tensors and of `extra` are
printable ASCII without space, quote and backslash, at most 200 and 64 characters.

A float32 tensor travels in the codec of the message; int32 and uint16 travel as they are. `codec_name.py` says how
codecs are called; there are plain ones, whose bytes are counted by the shape. Of n > 0 entries:

    fp32           4n      exact
    bf16           2n      rounded half to even; |error| <= 2^-8 |x| + 2^-134
    fp16           1 + 2n  exponent k (i8), then x / 2^k as fp16; k is the least for which the largest entry does
                           not overflow, and at least -125; |error| <= 2^-11 |x| + 2^-40 max|x| + 2^-150
    int8           4g + n  scales (fp32) of the g groups, then round(x / scale), half to even, from -127 to 127;
                           |error| <= 0.501 max|x| / 127 over the group, 0 stays 0; a scale below 2^-107 is sent as 0
    int32, uint16  4n, 2n  exact

An int8 group is one index of the rank: a row of a matrix, a column of a `*.lora_B`, all of a vector; its scale is
max|x| / 127. What was decoded encodes to the same bytes again, in every plain codec.

All other codecs select, round coarsely or make integers, and code what is left by its entropy: `coded.py` has the bytes
of a float32 tensor, whose wire type is the codec's canonical name. With them uint16 becomes the wire type "numbers",
which takes the fewest bytes (`entropy.py`). 256 entries take at least one byte and a message has at most 2^31 of them,
so what a short message can claim is bounded. A table of the frequencies of symbols always adds up, and nothing may be
left when the last symbol is out.

A tensor without entries takes no bytes and has no dimension above 2^20. Infinity and NaN stay non-finite in every
codec (entries above about 1e38 may become so), for the receiver to refuse.

What the decoders refuse, as `RejectedUpdate(code, message)`:

    too_large      longer than the limit                  spec_mismatch  names, shapes, wire types are not the spec's
    bad_magic      does not begin "FDFT"                  weight         num_examples is not an integer >= 1
    version        another protocol                       nonfinite      NaN or infinity in a float tensor
    malformed      anything else in this docstring        out_of_bounds  a decoded float beyond +-1e4
"""

import json
import logging
import math
import re
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedft import wire
from fedft.codec_name import PLAIN, Codec, parse
from fedft.entropy import Reader, varint
from fedft.errors import RejectedUpdate
from fedft.tensors import Tensors
from fedft.update import Job, Plan, Spec, TensorSpec, Update

PROTOCOL = 1
CODECS = PLAIN
MAX_MESSAGE_BYTES = 2**31 - 1  # the transport's messages are protobuf: signed 32-bit lengths
MAX_HEADER_BYTES = 4096  # ours take about 80; 32 metrics with the longest names still fit
MAX_JOB_BYTES = 64 * 1024
MAX_TENSORS = 8192  # an 80-layer model with all its modules adapted has about 1,100
MAX_ENTRIES = 2**31  # of all tensors of a message: four times what fp32 could hold
MAX_NAME = 200
MAX_METRICS = 32
MAX_METRIC = 1e30  # sums and means of what clients say stay finite
MAX_ABS = 1e4

_FRAME = struct.Struct("<4sHBHI")
_MAGIC = b"FDFT"
_PLAN, _UPDATE, _JOB = 1, 2, 3
_NAME = re.compile(rf"[!#-\[\]-~]{{1,{MAX_NAME}}}")
_METRIC = re.compile(r"[a-z0-9_.]{1,64}")
_TYPE = re.compile(r"[a-z0-9][a-z0-9:.|+-]{0,31}")
_LABEL = re.compile(r"[0-9a-f]{8}")
_RUN = re.compile(r"[0-9a-f]{16}")
_REQUIRED = object()

log = logging.getLogger(__name__)


class _Field(NamedTuple):
    key: str
    name: str
    check: Callable[[Any], Any]
    default: Any = _REQUIRED
    code: str = "malformed"


def encode_update(update: Update, codec: str, seed: int = 0) -> bytes:
    """The bytes of `update`, float tensors in `codec`; metrics a receiver would drop are dropped here, with a warning.

    Args:
        seed: of what the codec draws at random, 64 bits; a new one for every update.
    Raises ValueError for what no receiver could accept (field or tensor of a wrong type, over 2 dimensions), but never
    for a number in a float tensor: it is the receiver who refuses a diverged update, and so hears of it.
    """
    return _encode(_UPDATE, update, _UPDATE_FIELDS, update.delta, codec, seed)


def decode_update(data: bytes, spec: Spec, codec: str, *, max_bytes: int | None = None) -> Update:
    """The update in `data`, with exactly the tensors of `spec`, sent in `codec`; `client` is left empty.

    Tensors have the spec's dtype, are contiguous and own their memory; all floats are finite and within 1e4; where
    several tensors are `at_most`, their lengths need not agree. Unusable metrics are dropped with a warning.
    Args:
        max_bytes: a limit below `max_update_bytes(spec, codec)`, which holds in any case.
    Raises:
        RejectedUpdate: whatever else is in `data`. Nothing is allocated for a size that `data` does not have.
    """
    legal = max_update_bytes(spec, codec)  # a spec or codec that is wrong raises here: that is our mistake
    limit = legal if max_bytes is None else min(max_bytes, legal)
    with _refusing("update"):
        header, table, body = _open(data, _UPDATE, limit, _table_limit(len(spec)))
        values = _read(header, _UPDATE_FIELDS)
        entries = _entries(table)
        _fit(entries, spec, codec)
        return Update(delta=_tensors(entries, body), **values)


def relabelled(data: bytes, *, round: int, attempt: int) -> bytes:
    """An encoded update under another round and attempt, its tensors' bytes as they were.

    To decode and encode again would be another update where a codec rounds once more. Raises as `decode_update` does.
    """
    with _refusing("update"):
        header, _, _ = _open(data, _UPDATE, MAX_MESSAGE_BYTES, _table_limit(MAX_TENSORS))
        said = Update(delta={}, **(_read(header, _UPDATE_FIELDS) | {"round": round, "attempt": attempt}))
        *_, head, index = _FRAME.unpack_from(data)
        after = memoryview(data)[_FRAME.size + head :]
        new = _json_bytes(_write(said, _UPDATE_FIELDS))
        return b"".join([_FRAME.pack(_MAGIC, PROTOCOL, _UPDATE, len(new), index), new, after])


def encode_plan(plan: Plan, codec: str, seed: int = 0) -> bytes:
    """The bytes of `plan`, float tensors in `codec`, which draws by `seed`. Raises ValueError as for an update."""
    return _encode(_PLAN, plan, _PLAN_FIELDS, plan.tensors, codec, seed)


def decode_plan(data: bytes, *, max_bytes: int, within: Mapping[str, tuple[int, ...]] | None = None) -> Plan:
    """The plan in `data`, whatever its tensors are called: at most 2 dimensions, all floats finite and within 1e4.

    Args:
        max_bytes: the most that `data` may have.
        within: shapes by name; a tensor that is not one of these is refused before anything is allocated for it.
    Raises:
        RejectedUpdate: the same error as for updates and nothing else, whatever the bytes.
    """
    with _refusing("plan"):
        header, table, body = _open(data, _PLAN, max_bytes, _table_limit(MAX_TENSORS))
        values = _read(header, _PLAN_FIELDS)
        entries = _entries(table)
        for name, entry in entries.items():
            if within is not None and within.get(name) != entry.shape:
                raise RejectedUpdate("spec_mismatch", f"tensor {name!r} is {entry}, which is not in the state")
        return Plan(tensors=_tensors(entries, body), **values)


def encode_job(job: Job) -> bytes:
    """The bytes of `job`, at most 64 KiB; tuples become lists. Raises ValueError if it is longer or not plain JSON."""
    data = _frame(_JOB, _write(job, _JOB_FIELDS), _write(job, _JOB_TABLE), [])
    if len(data) > MAX_JOB_BYTES:
        raise ValueError(f"expected a job of at most {MAX_JOB_BYTES} bytes, got {len(data)}")
    return data


def decode_job(data: bytes) -> Job:
    """The job in `data`. Raises RejectedUpdate, the same error as for updates and nothing else, whatever the bytes."""
    with _refusing("job"):
        header, table, body = _open(data, _JOB, MAX_JOB_BYTES, MAX_JOB_BYTES)
        if body:
            raise ValueError(f"{len(body)} bytes after the job")
        return Job(**_read(header, _JOB_FIELDS), **_read(table, _JOB_TABLE))


def roundtrip(tensors: Tensors, codec: str, seed: int = 0) -> dict[str, Tensor]:
    """`tensors` as the other side will see them, in its order; new memory. Non-finite entries are let through.

    The same seed makes the same choices as in `encode_update`.
    """
    return {name: wire.seen(name, entry, tensors[name], seed) for name, entry in _describe(tensors, codec).items()}


def body_bytes(spec: Spec, codec: str) -> int:
    """Bytes of the tensors alone in an update of this spec, at most.

    Exact in plain codecs if nothing in the spec is `at_most`; in others it depends on the numbers, and mostly is less.
    """
    entries = {name: wire.Entry(wire.type_of(t.dtype, codec), t.shape) for name, t in spec.items()}
    parse(codec)  # also where there are no tensors
    return sum(wire.size(name, e) + 5 * wire.has_length(e) for name, e in entries.items())


def max_update_bytes(spec: Spec, codec: str) -> int:
    """1.05 x the largest legal update of this spec and codec + 64 KiB, but never above 2 GiB - 1.

    Whatever an honest client's numbers are, its update in a codec of entropy is no longer either.
    """
    largest = _FRAME.size + MAX_HEADER_BYTES + _table_limit(len(spec)) + body_bytes(spec, codec)
    return min(-(-largest * 21 // 20) + 64 * 1024, MAX_MESSAGE_BYTES)


def _table_limit(tensors: int) -> int:
    return 4096 + 256 * tensors


# Frames


def _encode(kind: int, value: Any, fields: tuple[_Field, ...], tensors: Tensors, codec: str, seed: int) -> bytes:
    entries = _describe(tensors, codec)
    body: list[bytes | memoryview] = []
    for name, entry in entries.items():
        parts = wire.pack(name, entry, tensors[name], seed)
        body += [varint(sum(len(p) for p in parts)), *parts] if wire.has_length(entry) else parts
    return _frame(kind, _write(value, fields), _rows(entries, parse(codec)), body)


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False, sort_keys=True).encode()


def _frame(kind: int, header: Any, table: Any, body: list[Any]) -> bytes:
    head, index = _json_bytes(header), _json_bytes(table)
    size = _FRAME.size + len(head) + len(index) + sum(len(part) for part in body)
    if len(head) > MAX_HEADER_BYTES or size > MAX_MESSAGE_BYTES:
        raise ValueError(f"header of {len(head)} bytes, message of {size}: too long for one message")
    return b"".join([_FRAME.pack(_MAGIC, PROTOCOL, kind, len(head), len(index)), head, index, *body])


def _open(data: bytes, kind: int, max_bytes: int, max_table_bytes: int) -> tuple[Any, Any, memoryview]:
    if len(data) > (limit := min(max_bytes, MAX_MESSAGE_BYTES)):
        raise RejectedUpdate("too_large", f"message of {len(data)} bytes, at most {limit} allowed")
    if data[:4] != _MAGIC:
        raise RejectedUpdate("bad_magic", f"message begins {bytes(data[:4])!r}, wanted {_MAGIC!r}")
    _, protocol, found, head, index = _FRAME.unpack_from(data)
    if protocol != PROTOCOL:
        raise RejectedUpdate("version", f"protocol {protocol}, wanted {PROTOCOL}; is the peer's fedft as new as ours?")
    if found != kind:
        raise ValueError(f"message of kind {found}, wanted {kind}")
    if head > MAX_HEADER_BYTES or index > max_table_bytes or _FRAME.size + head + index > len(data):
        raise ValueError(f"header of {head} and table of {index} bytes in a message of {len(data)}")
    view = memoryview(data)[_FRAME.size :]
    return _json(view[:head]), _json(view[head : head + index]), view[head + index :]


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What bytes from outside can provoke becomes `malformed`; RuntimeError is torch's lack of memory, or recursion."""
    try:
        yield
    except (struct.error, LookupError, TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as e:
        raise RejectedUpdate("malformed", f"malformed {what}: {str(e)[:300]}") from e


def _json(text: memoryview) -> Any:
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


# Fields: each check returns the value to use or raises ValueError; the same ones serve writing and reading


def _write(value: Any, fields: tuple[_Field, ...]) -> dict[str, Any]:
    out = {}
    for f in fields:
        try:
            if (v := getattr(value, f.name)) != f.default and (checked := f.check(v)) != f.default:
                out[f.key] = checked
        except ValueError as e:
            raise ValueError(f"{f.name}: {e}") from e
    return out


def _read(header: Any, fields: tuple[_Field, ...]) -> dict[str, Any]:
    _want(isinstance(header, dict), "a JSON object", header)
    _want(header.keys() <= (known := {f.key for f in fields}), f"no keys but {', '.join(sorted(known))}", list(header))
    values = {}
    for f in fields:
        if f.key in header:
            try:
                values[f.name] = f.check(header[f.key])
            except ValueError as e:
                raise RejectedUpdate(f.code, f"{f.name}: {str(e)[:300]}") from e
        elif f.default is _REQUIRED:
            raise RejectedUpdate(f.code, f"{f.name} is missing")
    return values


def _want(ok: bool, wanted: str, value: Any) -> Any:
    if not ok:
        raise ValueError(f"expected {wanted}, got {value!r:.80}")
    return value


def _count(value: Any, least: int = 0) -> Any:
    return _want(type(value) is int and least <= value < 2**53, f"an integer from {least} to 2^53 - 1", value)


def _flag(value: Any) -> Any:
    return _want(isinstance(value, bool), "true or false", value)


def _run(value: Any) -> Any:
    return _want(isinstance(value, str) and _RUN.fullmatch(value) is not None, "16 hexadecimal digits", value)


def _label(value: Any) -> Any:
    return _want(isinstance(value, str) and _LABEL.fullmatch(value) is not None, "8 hexadecimal digits", value)


def _rate(value: Any) -> float:
    return float(_want(_is_number(value) and value >= 0, "a finite number >= 0", value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _metrics(value: Any) -> dict[str, float]:
    """The usable metrics by name; a whole number as int, which is equal and shorter to send."""
    _want(isinstance(value, Mapping), "an object", value)
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
        _want(abs(value) < 2**53 if isinstance(value, int) else math.isfinite(value), "a number for JSON", value)
    elif depth and isinstance(value, Mapping):
        return {_plain(_want(isinstance(k, str), "text as key", k)): _plain(v, depth - 1) for k, v in value.items()}
    elif depth and isinstance(value, list | tuple):
        return [_plain(v, depth - 1) for v in value]
    else:
        raise ValueError(f"expected plain JSON, not too deep, got {type(value).__name__}")
    return value


def _table(value: Any) -> Any:
    return _plain(_want(isinstance(value, Mapping), "an object", value))


def _extra(value: Any) -> Any:
    table = _table(value)
    for key, v in table.items():
        _want(len(key) <= 64 and _NAME.fullmatch(key) is not None, "a short name", key)
        _want(isinstance(v, str | int | float), "a number, text or truth value", v)
    return table


_UPDATE_FIELDS = (
    _Field("r", "run", _run, ""),
    _Field("t", "round", _count, 0),
    _Field("a", "attempt", _count, 0),
    _Field("n", "num_examples", lambda n: _count(n, 1), code="weight"),
    _Field("m", "metrics", _metrics, {}),
)
_PLAN_FIELDS = (
    _Field("r", "run", _run),
    _Field("t", "round", _count),
    _Field("v", "version", _count),
    _Field("h", "have", _count, None),
    _Field("y", "label", _label, ""),
    _Field("z", "have_label", _label, ""),
    _Field("a", "attempt", _count, 0),
    _Field("e", "evaluate", _flag, False),
    _Field("k", "rank", _count, 0),
    _Field("s", "steps", _count, 0),
    _Field("l", "learning_rate", _rate, 0.0),
    _Field("c", "counted", _count, None),
    _Field("x", "extra", _extra, {}),
)
_JOB_FIELDS = (_Field("r", "run", _run), _Field("s", "seed", _count))
_JOB_TABLE = (
    *(_Field(k, k, _table) for k in ("strategy", "local", "model")),
    *(_Field(k, k, _table, {}) for k in ("codec", "data", "eval")),
)


# Tables


def _describe(tensors: Tensors, codec: str) -> dict[str, wire.Entry]:
    parse(codec)
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"expected at most {MAX_TENSORS} tensors, got {len(tensors)}")
    entries = {}
    for name in sorted(tensors):
        t = tensors[name]
        if not _NAME.fullmatch(name) or t.dtype not in wire.DTYPES:
            raise ValueError(f"tensor {name!r:.220} is {t.dtype}{list(t.shape)}: not a name or type for the wire")
        entries[name] = wire.Entry(wire.type_of(wire.DTYPES[t.dtype], codec), tuple(t.shape))
        wire.size(name, entries[name])  # refuses what has no place in the format
    return entries


def _rows(entries: Mapping[str, wire.Entry], codec: Codec) -> Any:
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
    _want(not table and isinstance(codec, str) and isinstance(rows, list), "a codec and rows", table)
    for p, rest, *more in rows[: MAX_TENSORS + 1]:
        _want(_count(p) <= len(above) and isinstance(rest, str), "the rest of a name", [p, rest])
        above = _want(len(name := above[:p] + rest) <= MAX_NAME, "a tensor's name", name)
        out.append([name, *more] if more and isinstance(more[0], str) else [name, codec, *more])
    return out


def _entries(table: Any) -> dict[str, wire.Entry]:
    entries: dict[str, wire.Entry] = {}
    last = ""
    table = _long_rows(table)
    _want(isinstance(table, list) and len(table) <= MAX_TENSORS, f"a JSON array of at most {MAX_TENSORS}", table)
    for row in table:
        _want(isinstance(row, list) and len(row) >= 2, "[name, wire type, dimension...]", row)
        name, kind, *shape = row
        _want(isinstance(name, str) and _NAME.fullmatch(name) is not None, "a tensor's name", name)
        _want(name > last, f"names ascending after {last!r}", name)
        _want(isinstance(kind, str) and _TYPE.fullmatch(kind) is not None, "a wire type", kind)
        entries[name] = wire.Entry(kind, tuple(_count(n) for n in shape))
        last = name
    return entries


def _fit(entries: Mapping[str, wire.Entry], spec: Spec, codec: str) -> None:
    for name in sorted(entries.keys() | spec.keys()):
        found, t = entries.get(name), spec.get(name)
        if t is None:
            wanted = "no such tensor"
        elif found is None or found.type != wire.type_of(t.dtype, codec) or not _same_shape(found.shape, t):
            first = "<=" if t.at_most else ""
            wanted = f"{wire.type_of(t.dtype, codec)}[{first}{str(list(t.shape))[1:]}"
        else:
            continue
        message = f"tensor {name!r} is {found or 'missing'}, wanted {wanted}; do both sides have the same job?"
        raise RejectedUpdate("spec_mismatch", message)


def _same_shape(found: tuple[int, ...], t: TensorSpec) -> bool:
    if not t.at_most:
        return found == t.shape
    return len(found) == len(t.shape) and found[1:] == t.shape[1:] and found[0] <= t.shape[0]


def _tensors(entries: Mapping[str, wire.Entry], body: memoryview) -> dict[str, Tensor]:
    r = Reader(body)
    if (total := sum(math.prod(e.shape) for e in entries.values())) > MAX_ENTRIES:
        raise ValueError(f"{total} entries, at most {MAX_ENTRIES} allowed")
    parts: dict[str, memoryview] = {}
    for name, entry in entries.items():
        n = most = wire.size(name, entry)
        if wire.has_length(entry) and (n := r.varint()) > most:
            raise ValueError(f"{n} bytes of tensor {name!r}, which is {entry}: at most {most} allowed")
        parts[name] = r.take(n)
    r.close()
    out: dict[str, Tensor] = {}
    for name, entry in entries.items():
        out[name] = wire.unpack(name, entry, parts[name])
        if out[name].is_floating_point() and out[name].numel():
            lo, hi = (float(x) for x in torch.aminmax(out[name]))  # a NaN anywhere comes out as both
            if not (math.isfinite(lo) and math.isfinite(hi)):
                raise RejectedUpdate("nonfinite", f"tensor {name!r} has NaN or infinite entries")
            if max(-lo, hi) > MAX_ABS:
                raise RejectedUpdate("out_of_bounds", f"tensor {name!r} has {max(-lo, hi):g}, above {MAX_ABS:g}")
    return out
