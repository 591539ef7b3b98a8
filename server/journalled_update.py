"""An admitted update that stays in the journal: what it says is read at once, a tensor when it is asked for."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

from fedft.arithmetic.tensors_in_file import Place, TensorsInFile
from fedft.compression.bit_packing import Reader
from fedft.durable import DIGEST_BYTES
from fedft.update import Spec, Update
from fedft.wire import forms, frame
from fedft.wire.body import MAX_LENGTH, read_body
from fedft.wire.frame import FRAME, MAX_MESSAGE_BYTES, MessageKind
from fedft.wire.header import read_fields
from fedft.wire.table import Entry, check_fit, form, max_table_bytes, read_entries


def update_in(path: Path, spec: Spec, codec: str) -> Update:
    """The update that `messages.decode_update` accepted, as its bytes lie in a file behind their SHA-256.

    Its `delta` is a `TensorsInFile`: each tensor is decoded anew when it is asked for, and the file looked for by its
    name. `client` is left empty. Whether the bytes are those that were accepted is the caller's to know.

    Args:
        path: of the file, as `durable.commit` wrote it.
        spec: names, shapes and dtypes of the update.
        codec: that it was sent in.
    """
    with path.open("rb") as f:
        f.seek(DIGEST_BYTES)
        _, _, _, head, rows = FRAME.unpack(f.read(FRAME.size))
        f.seek(DIGEST_BYTES)
        start = f.read(FRAME.size + head + rows)
        table_bytes = max_table_bytes(len(spec))
        version, header, table, _ = frame.unpack(start, MessageKind.UPDATE, MAX_MESSAGE_BYTES, table_bytes)
        said, entries = read_fields(header, forms.FORMS[version].update), read_entries(table)
        check_fit(entries, spec, codec)
        places = dict(_places(f, DIGEST_BYTES + len(start), entries))
    return Update(delta=TensorsInFile(path, places, stays_open=False), **said)


def _places(f: BinaryIO, begin: int, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Place]]:
    """(name, place) of each tensor of a message's body, which begins at a byte of the file."""
    for name, entry in entries.items():
        _, size, least, exact = form(name, entry)
        before = 0
        if not exact:
            f.seek(begin)
            start = f.read(MAX_LENGTH)
            reader = Reader(memoryview(start))
            size = reader.varint()
            before = len(start) - len(reader.left)
        whole = before + max(size, least)
        yield name, Place(begin, whole, partial(_decoded, name, entry))
        begin += whole


def _decoded(name: str, entry: Entry, raw: Tensor) -> Tensor:
    """The tensor of a body that has no other."""
    return read_body({name: entry}, raw.numpy().data)[name]
