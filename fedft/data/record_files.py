"""Files of records, by their form: JSON lines, JSON, CSV, TSV and Parquet, all but the last also as .gz.

    .jsonl .ndjson    an object per line                  .csv .tsv    a header, then cells, all of them text
    .json             a list of objects, or as .jsonl     .parquet     columns; nested ones become lists and objects

A file of another name is looked at: JSON where it begins like that.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from fedft.errors import DataError

Row = dict[str, Any]
FORMS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")

MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""How a file begins that says its encoding; UTF-8 may say so, too."""
UNUSED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
"""Bytes that are nothing in windows-1252."""

OTHERS = {
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself; `git lfs pull` gets that",
    b"PK\x03\x04": "a ZIP archive or a sheet of Excel; unpack it, or save the sheet as CSV UTF-8",
    b"\x1f\x8b": "is compressed by gzip; the name of such a file must end in .gz",
    b"BZh": "is compressed by bzip2; unpack it, or compress it by gzip",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it, or compress it by gzip",
    b"PAR1": "a Parquet file; its name must end in .parquet",
    b"ARROW1": "an Arrow file; wanted Parquet, or the folder that `save_to_disk` of datasets wrote",
    b"SQLite format 3": "a database of SQLite; export the table as CSV",
}
"""How files begin that are no text, and what is to be done."""
QUOTES = "a quote that is only text is doubled and its cell put in quotes; JSON lines would do, too"
FROM_MAC = "lines end in a carriage return alone; `tr '\\r' '\\n'` makes lines of them"

csv.field_size_limit(2**31 - 1)  # a cell may hold a whole document; the library's own limit is 128 KiB


def form_of(path: Path) -> str | None:
    """The one of FORMS that a file's name says, or None. `.gz` behind it does not count.

    >>> form_of(Path("visits.csv.gz")), form_of(Path("visits.txt"))
    ('.csv', None)
    """
    name = path.name.lower().removesuffix(".gz")
    return next((form for form in FORMS if name.endswith(form)), None)


def rows(path: Path) -> Iterator[tuple[str, Row]]:
    """(where, record) of a file, in its order; `where` names the file and the line or record.

    Raises DataError: no such file, none of the FORMS, or malformed.
    """
    form = form_of(path)
    _check_begins(path, form)
    if form == ".parquet":
        return _parquet(path)
    if form == ".csv":
        return _table(path, ",")
    if form == ".tsv":
        return _table(path, "\t")
    if form in (".jsonl", ".ndjson"):
        return _json_lines(path)
    begins = next((line.lstrip()[:1] for _, line in _lines(path) if not line.isspace()), "")
    if form == ".json" and not begins:
        return iter(())
    if begins not in ("[", "{"):
        raise DataError(
            f"{path}: expected a list of objects or an object per line, or a name that ends in one of "
            f"{', '.join(FORMS)} (or .gz of one), or a hub id 'owner/name'"
        )
    return _json_list(path) if begins == "[" else _json_lines(path)


def _looked(path: Path) -> str:
    """Where a file was looked for whose path a run file says."""
    return "" if path.is_absolute() else f", neither beside the run file nor in {Path.cwd()}"


def _check_begins(path: Path, form: str | None) -> None:
    """Raise DataError for a file of another kind than its name says, known by its first bytes."""
    try:
        if not path.is_file():
            return  # a pipe can be read once
        with path.open("rb") as file:
            begins = file.read(max(map(len, OTHERS)))
    except OSError:
        return  # said where it is read
    what = next((what for mark, what in OTHERS.items() if begins.startswith(mark)), None)
    fits = (form == ".parquet" and begins.startswith(b"PAR1")) or path.suffix.lower() == ".gz"
    if what is not None and not fits:
        raise DataError(f"{path}: {what}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; what hinders reading is a DataError at its line."""
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(_decoded(file), 1):
                yield number, line
    except UnicodeError as e:
        raise DataError(f"{path}, line {number + 1}: {_not_text(e)}") from e
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file{_looked(path)}") from e
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read behind line {number}: {e}") from e


def _decoded(file: io.BufferedIOBase) -> Iterator[str]:
    """The lines of UTF-8 text, or of what its first bytes say (UTF-16, UTF-32). UnicodeError for other bytes."""
    first = file.readline()
    marked = next((name for mark, name in MARKS if first.startswith(mark)), None)
    if marked is not None:
        yield from io.StringIO((first + file.read()).decode(marked), newline="\n")  # lines end as those of UTF-8 do
        return
    for number, line in enumerate(chain([first] if first else [], file)):
        if b"\0" in line:
            raise UnicodeError("a byte 0: probably UTF-16 without its mark")
        yield line.decode("utf-8" if number else "utf-8-sig")


def _not_text(e: UnicodeError) -> str:
    """What is wrong with bytes, and the command that may put it right."""
    said, encoding = str(e), "UTF-16LE"
    if isinstance(e, UnicodeDecodeError):
        byte = e.object[e.start]
        if e.encoding not in ("utf-8", "utf-8-sig"):
            return f"not {e.encoding} text, as its first bytes say: {e.reason}"
        said, encoding = f"byte 0x{byte:02x} is not UTF-8", "WINDOWS-1252"
        said += "" if byte in UNUSED else ", probably windows-1252, as Excel writes"
    return f"{said}; `iconv -f {encoding} -t UTF-8` makes UTF-8 of it, which is wanted"


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in _lines(path):
        if not line.isspace():
            where = f"{path}, line {number}"
            if line.strip() in ("{", "["):
                raise DataError(f"{where}: an object over several lines; wanted one in each line, or a list in a .json")
            yield where, _object(_parsed(line.strip(), path, number), where)


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    found = _parsed("".join(line for _, line in _lines(path)), path, 1)
    for number, row in enumerate(found, 1):
        where = f"{path}, record {number}"
        yield where, _object(row, where)


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as e:
        if "\r" in text and "\n" not in text:
            raise DataError(f"{path}, line {first_line}: not JSON: {FROM_MAC}") from e
        raise DataError(f"{path}, line {first_line + e.lineno - 1}: not JSON: {e.msg} at column {e.colno}") from e
    except (ValueError, RecursionError) as e:  # a key twice, a number of too many digits, brackets too deep
        raise DataError(f"{path}, line {first_line}: not JSON that we read: {e}") from e


def _once(pairs: list[tuple[str, Any]]) -> Row:
    """An object whose keys are all different; of two values of one key, readers disagree which counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!a} stands twice in one object")
    return found


def _object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object {{...}}, got {type(value).__name__}")
    return value


def _table(path: Path, separator: str) -> Iterator[tuple[str, Row]]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True, delimiter=separator)
    try:
        names = next(filter(None, reader), [])
        if names and names[0].startswith("sep=") and len(names) <= 2:
            raise DataError(f"{path}, line 1: {names[0]!r} is for Excel, not a header; take the line out")
        if len(set(names)) < len(names) or (names and not all(names)):
            raise DataError(f"{path}, line 1: expected a header of different field names, got {names}")
        if len(names) == 1 and (other := next((s for s in ";\t|," if s != separator and s in names[0]), None)):
            raise DataError(
                f"{path}, line 1: one field, {names[0]!r:.80}; its cells look separated by {other!r}, wanted "
                f"{separator!r} in a file of this name (.csv: commas, .tsv: tabs)"
            )
        for cells in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise DataError(f"{where}: {len(cells)} cells, the header has {len(names)}")
            if separator == "\t" and any("\t" in cell for cell in cells):
                raise DataError(f"{where}: a cell in quotes holds a tab; {QUOTES}")
            yield where, dict(zip(names, cells, strict=True))
    except csv.Error as e:
        if "new-line character" in str(e):
            raise DataError(f"{path}, line {reader.line_num}: not CSV: {FROM_MAC}") from e
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {e}; {QUOTES}") from e


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    from pyarrow import ArrowException, float32
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            short = [field.name for field in file.schema_arrow if field.type == float32()]
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, record {number}", row | {name: shortest(row[name]) for name in short}
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file{_looked(path)}") from e
    except (OSError, ArrowException) as e:
        raise DataError(f"{path}: cannot be read as Parquet behind record {number}: {str(e).splitlines()[0]}") from e


def shortest(value: float | None) -> float | None:
    """A number of single precision as it is written: 0.1, where Python makes 0.10000000149011612 of it."""
    import numpy

    return None if value is None else float(str(numpy.float32(value)))
