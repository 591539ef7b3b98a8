"""Records, dictionaries of named values, read from files or from the Hugging Face hub.

    rows = read_rows("train.jsonl.gz")

A record that cannot be read is a DataError of one line that says where it is. Which client has which records is decided
in `partition`.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedft.errors import DataError

Row = dict[str, Any]
FORMATS = (".jsonl", ".json", ".csv")  # each may be followed by .gz
SURROGATE = re.compile(r"[\ud800-\udfff]")
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")


def read_rows(source: str) -> list[Row]:
    """The records of a file or of a data set on the Hugging Face hub.

    Args:
        source: path to JSON lines, JSON (one list of objects) or CSV (with a header), plain or as .gz; or a hub id
            "owner/name" or "owner/name:split", split "train" if not said. HF_HUB_OFFLINE=1 keeps to the hub's cache.
    Returns:
        At least one record, in the order of the file. CSV values are text; blank lines are passed over.
    Raises:
        DataError: a malformed line (of a JSON list: record), naming the file and its number; a file that cannot be
            read or has no record; a data set that the hub does not have.
    """
    path = Path(source)
    form = next((f for f in FORMATS if path.name.endswith((f, f + ".gz"))), None)
    if form is None:
        rows = _from_hub(source)
    else:
        # Not by datasets' builders: they copy everything into a cache folder and report a bad line without its number.
        rows = list({".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}[form](path))
    if not rows:
        raise DataError(f"{source} holds no records")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line with its end) of a text file, plain or .gz. Raises DataError at the line that is broken."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}, line {number}: not UTF-8 text ({e.reason})") from e
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file") from e
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read behind line {number}: {e}") from e


def _json_lines(path: Path) -> Iterator[Row]:
    """The records of a file with one JSON object per line."""
    for number, line in _lines(path):
        if not line.isspace():
            yield _json_object(_parsed(line.strip(), path, number), f"{path}, line {number}")


def _json_list(path: Path) -> Iterator[Row]:
    """The records of a file that is one JSON list of objects."""
    text = "".join(line for _, line in _lines(path))
    rows = _parsed(text or "[]", path, 1)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}; JSON lines end in .jsonl")
    for number, row in enumerate(rows, 1):
        yield _json_object(row, f"{path}, record {number}")


def _parsed(text: str, path: Path, first_line: int) -> Any:
    """The JSON value of a text that begins at this line of the file. Raises DataError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {first_line + e.lineno - 1}: not JSON: {e.msg} at column {e.colno}") from e
    except (ValueError, RecursionError) as e:  # a number of too many digits, brackets too deep
        raise DataError(f"{path}, line {first_line}: not JSON that we read: {e}") from e


def _json_object(value: Any, where: str) -> Row:
    """`value`, if it is an object whose names and texts can be encoded. Raises DataError beginning with `where`."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object {{...}}, got {type(value).__name__}")
    for name, text in value.items():
        # JSON can say half a character, which neither a tokenizer nor a client's name can hold
        if SURROGATE.search(name) or (isinstance(text, str) and SURROGATE.search(text)):
            raise DataError(f"{where}: field {name!a} is not text: it holds a lone surrogate")
    return value


def _csv(path: Path) -> Iterator[Row]:
    """The records of a CSV file, by the names in its first line."""
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names) or (names and not all(names)):
            raise DataError(f"{path}, line 1: expected a header of different field names, got {names}")
        for cells in filter(None, reader):
            if len(cells) != len(names):
                raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(names)}")
            yield dict(zip(names, cells, strict=True))
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {e}") from e


def _from_hub(source: str) -> list[Row]:
    """The records of a data set on the hub."""
    found = HUB_ID.fullmatch(source)
    if found is None or Path(source).exists():
        raise DataError(f"{source}: expected a file {', '.join(FORMATS)} (or .gz of one) or a hub id 'owner/name'")
    import datasets

    try:
        return list(datasets.load_dataset(found["name"], split=found["split"] or "train"))
    except Exception as e:  # network, cache, script and Arrow errors of five libraries, none of them ours
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "") else ""
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise DataError(f"{source}: no such file, and not to be had from the hub{offline}: {reason}") from e
