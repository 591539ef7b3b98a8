"""`Plan`, `Update` and `Job` <-> bytes. Pure functions; this docstring is the format.

    frame    magic "FDFT" | protocol u16: 2 | kind u8 | header length u16 | table length u32 | header | table | body
    kind     1 plan, 2 update, 3 job; all numbers little endian, nothing is padded or aligned
    header   JSON object of at most 4,096 bytes (a plan's: 65,536) with one-letter keys; a field at its default is left
             out
               update  r run, t round, a attempt, n num_examples, m metrics
               plan    r run, t round, v version, y label, h have, z have_label, a attempt, e evaluate, k rank, q ranks,
                       o chosen, b batch, i bits, s steps, l learning_rate, c counted, x extra
               job     r run, s seed, b base, k tokenizer
    table    JSON array of at most 4 KiB + 256 bytes per tensor: [name, wire type, dimension...] for each tensor, names
             ascending bytewise, hence none twice; at most 8,192 tensors, which is also what bounds a plan's table
             in a job: JSON object with the run file's tables under "t", at most 16 deep; all at most 64 KiB
             of other than plain codecs: {"c": codec, "t": rows}, a row [p, rest of name, wire type, dimension...] whose
             name begins with p characters of the name above, and whose wire type is left out where it is the codec
    body     the tensors' bytes in the table's order, row-major, exactly as many as the table implies, where it does,
             else as many as a varint before them says, then zeros up to a byte for 256 entries; a job has none

JSON is compact UTF-8 with sorted keys: equal values make equal bytes. Refused in it: a key twice, an unknown key, NaN
and Infinity, an integer of 2^53 or more, half a surrogate pair in a value that is used. Metrics beyond
+-1e30, not named [a-z0-9_.]{1,64} or beyond the first 32 by name are dropped. Names of tensors and of `extra` are
printable ASCII without space, quote and backslash, at most 200 and 64 characters.

A float32 tensor travels in the codec of the message (`fedft.compression.codec_names` says their names), whose
canonical name is its wire type; int32 and uint16 travel as they are, little endian. The bytes of a codec are in the
docstring of its file, and where one name stands alone and behind a selection they are the same bytes:

    plain.py        fp32, bf16, fp16                      top_k.py          topk:Q | ..., randk:Q | ...
    quantized.py    int8, int4                            entropy_coder.py  symbols, supports, numbers
    ternary.py      ternary                               bit_packing.py    bits, fields, varints
    fixed_point.py  fixed:BITS:CLIP

Plain codecs (fp32, bf16, fp16, int8) take as many bytes as the shape says, and what was decoded encodes to the same
bytes again. With all others uint16 becomes the wire type "numbers", which takes the fewest bytes. 256 entries take at
least one byte: zeros follow where a codec makes fewer. A message has at most 2^31 entries, so what a short message can
claim is bounded. A table of the frequencies of symbols always adds up, and nothing may be left when the last symbol is
out. A name of a codec in a message imports nothing.

A tensor without entries takes no bytes and has no dimension above 2^20. Infinity and NaN stay non-finite in every
codec (entries above about 1e38 may become so), for the receiver to refuse.

What the decoders refuse, as `RejectedUpdate(code, message)`:

    too_large      longer than the limit                  spec_mismatch  names, shapes, wire types are not the spec's
    bad_magic      does not begin "FDFT"                  weight         num_examples is not an integer >= 1
    version        a protocol not in `forms.FORMS`        nonfinite      NaN or infinity in a float tensor
    malformed      anything else in this docstring        out_of_bounds  a decoded float beyond +-1e4
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.compression.codec_names import PLAIN, received
from fedft.errors import RejectedUpdate
from fedft.update import Job, Plan, Spec, Update
from fedft.wire import forms, frame, versions
from fedft.wire.body import MAX_ABS as MAX_ABS
from fedft.wire.body import body_bytes as body_bytes
from fedft.wire.body import read_body, read_with_squares, seen_tensors, write_body
from fedft.wire.forms import JOB_TABLE
from fedft.wire.frame import MAX_MESSAGE_BYTES as MAX_MESSAGE_BYTES
from fedft.wire.frame import MessageKind
from fedft.wire.header import read_fields, write_fields
from fedft.wire.table import MAX_TENSORS, Entry, check_fit, describe, max_table_bytes, read_entries, write_rows

CODECS = PLAIN
MAX_JOB_BYTES = 64 * 1024  # how much JSON a job makes a site parse; ours take one or two thousand


def encode_update(update: Update, codec: str, seed: int = 0) -> bytes:
    """The bytes of `update`, float tensors in `codec`; metrics a receiver would drop are dropped here, with a warning.

    Args:
        update: its `delta` is float32, int32 or uint16; not modified.
        codec: name of the codec, as in `[codec] up`.
        seed: of what the codec draws at random, 64 bits; a new one for every update.
    Raises:
        ValueError: no receiver could accept a field or a tensor (wrong type, over 2 dimensions). A number in a float
            tensor never raises: the receiver refuses a diverged update, and so hears of it.
    """
    return _encode(MessageKind.UPDATE, update, update.delta, codec, seed)


def decode_update(data: bytes, spec: Spec, codec: str, *, max_bytes: int | None = None, apart: bool = False) -> Update:
    """The update in `data`, with exactly the tensors of `spec`, sent in `codec`; `client` is left empty.

    Tensors have the spec's dtype, are contiguous and own their memory; all floats are finite and within 1e4; where
    several tensors are `at_most`, their lengths need not agree. Unusable metrics are dropped with a warning.

    Args:
        data: bytes from outside, of any kind and length.
        spec: names, shapes and dtypes that are wanted.
        codec: name of the codec that is wanted, as in `[codec] up`.
        max_bytes: a limit below `max_update_bytes(spec, codec)`, which holds in any case.
        apart: whether large tensors may be left in `data`, which is kept, and be made at each look: `body.InMessage`.
    Raises:
        RejectedUpdate: whatever else is in `data`. Nothing is allocated for a size that `data` does not have.
    """
    legal = max_update_bytes(spec, codec)  # a spec or codec that is wrong raises here: that is our mistake
    limit = legal if max_bytes is None else min(max_bytes, legal)
    with _refusing("update"):
        version, header, table, body = frame.unpack(data, MessageKind.UPDATE, limit, max_table_bytes(len(spec)))
        values = read_fields(header, forms.FORMS[version].update)
        entries = read_entries(table)
        check_fit(entries, spec, codec)
        return Update(delta=read_with_squares(entries, body, apart=apart), **values)


def relabelled(data: bytes, *, round: int, attempt: int) -> bytes:
    """An encoded update under another round and attempt, its version and its tensors' bytes as they were.

    To decode and encode again would be another update where a codec rounds once more. Raises as `decode_update` does.
    """
    with _refusing("update"):
        version, header, _, _ = frame.unpack(data, MessageKind.UPDATE, MAX_MESSAGE_BYTES, max_table_bytes(MAX_TENSORS))
        fields = forms.FORMS[version].update
        said = Update(delta={}, **(read_fields(header, fields) | {"round": round, "attempt": attempt}))
        return frame.with_header(data, write_fields(said, fields), version)


def in_version(data: bytes, version: int) -> bytes:
    """A message of ours (plan, update or job) in another version of the protocol: the same values.

    The newest version is what the encoders write; this is how an older peer is spoken to, and how an answer that was
    kept over an update of fedft leaves. `data` itself where it is of that version.

    Raises RejectedUpdate: `version` where the message says something that the other version has no field for, and as
    the decoders for what is no message.
    """
    with _refusing("message"):
        if (found := frame.version_of(data)) == version:
            return data
        kind = MessageKind(data[6])
        _, header, _, _ = frame.unpack(data, kind, MAX_MESSAGE_BYTES, max_table_bytes(MAX_TENSORS))
        here, there = forms.FORMS[found].of(kind), forms.FORMS[version].of(kind)
        values = read_fields(header, here)
        if lost := values.keys() - {f.name for f in there}:
            raise RejectedUpdate("version", f"protocol {version} cannot say {min(lost)!r}: update the peer")
        made: dict[MessageKind, Callable[..., Any]] = {
            MessageKind.PLAN: Plan,
            MessageKind.UPDATE: partial(Update, {}),
            MessageKind.JOB: Job,
        }
        return frame.with_header(data, write_fields(made[kind](**values), there), version)


def encode_plan(plan: Plan, codec: str, seed: int = 0) -> bytes:
    """The bytes of `plan`, float tensors in `codec`, which draws by `seed`. Raises ValueError as for an update."""
    return _encode(MessageKind.PLAN, plan, plan.tensors, codec, seed)


def decode_plan(
    data: bytes, *, max_bytes: int, check: Callable[[Plan, Mapping[str, Entry]], None] | None = None
) -> Plan:
    """The plan in `data`, whatever its tensors are called: at most 2 dimensions, all floats finite and within 1e4.

    Args:
        data: bytes from outside, of any kind and length; the codec stands in their table.
        max_bytes: the most that `data` may have.
        check: (plan without its tensors, their entries in the table) raises what refuses it, before anything is
            allocated for a tensor. Left out, a byte can claim 256 entries, a KiB of memory.
    Raises:
        RejectedUpdate: the same error as for updates and nothing else but what `check` raises, whatever the bytes.
    """
    with _refusing("plan"):
        version, header, table, body = frame.unpack(data, MessageKind.PLAN, max_bytes, max_table_bytes(MAX_TENSORS))
        plan, entries = Plan(**read_fields(header, forms.FORMS[version].plan)), read_entries(table)
        if check is not None:
            check(plan, entries)
        return replace(plan, tensors=read_body(entries, body))


def encode_job(job: Job) -> bytes:
    """The bytes of `job`, at most 64 KiB; tuples become lists. Raises ValueError if it is longer or not plain JSON."""
    version = versions.newest()
    header, table = write_fields(job, forms.FORMS[version].job), write_fields(job, JOB_TABLE)
    data = frame.pack(MessageKind.JOB, header, table, [], version)
    if len(data) > MAX_JOB_BYTES:
        raise ValueError(f"expected a job of at most {MAX_JOB_BYTES} bytes, got {len(data)}")
    return data


def decode_job(data: bytes) -> Job:
    """The job in `data`. Raises RejectedUpdate, the same error as for updates and nothing else, whatever the bytes."""
    with _refusing("job"):
        version, header, table, body = frame.unpack(data, MessageKind.JOB, MAX_JOB_BYTES, MAX_JOB_BYTES)
        if body:
            raise ValueError(f"{len(body)} bytes after the job")
        return Job(**read_fields(header, forms.FORMS[version].job), **read_fields(table, JOB_TABLE))


def roundtrip(tensors: Tensors, codec: str, seed: int = 0) -> dict[str, Tensor]:
    """`tensors` as the other side will see them, in its order; new memory. Non-finite entries are let through.

    The same seed makes the same choices as in `encode_update`.
    """
    return seen_tensors(describe(tensors, codec), received(codec).across(tensors), seed)


def max_update_bytes(spec: Spec, codec: str) -> int:
    """1.05 x the largest legal update of this spec and codec + 64 KiB, but never above 2 GiB - 1.

    Whatever an honest client's numbers are, its update in a codec of entropy is no longer either.
    """
    largest = frame.FRAME.size + frame.MAX_HEADER_BYTES + max_table_bytes(len(spec)) + body_bytes(spec, codec)
    return min(-(-largest * 21 // 20) + 64 * 1024, MAX_MESSAGE_BYTES)


def _encode(kind: MessageKind, value: Any, tensors: Tensors, codec: str, seed: int) -> bytes:
    version, entries = versions.newest(), describe(tensors, codec)
    body = write_body(entries, received(codec).across(tensors), seed)
    header = write_fields(value, forms.FORMS[version].of(kind))
    return frame.pack(kind, header, write_rows(entries, received(codec)), body, version)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """What bytes from outside can provoke becomes `malformed`; RuntimeError is torch's lack of memory, or recursion."""
    try:
        yield
    except (struct.error, LookupError, TypeError, ValueError, ArithmeticError, MemoryError, RuntimeError) as e:
        raise RejectedUpdate("malformed", f"malformed {what}: {str(e)[:300]}") from e
