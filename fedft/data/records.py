"""Records, dictionaries of named values, from wherever a run file says. Whose they are is in `partition.py`.

    rows = read_rows("train.jsonl.gz")          one file; `record_files` says which forms there are
    rows = read_rows("visits/*.csv")            several, in the order of their names; a folder is all in it
    rows = read_rows("owner/name:de:train")     a configuration and a split of a data set on the Hugging Face hub

What is wrong with a user's records is a DataError of one line that says where.
"""

import glob
import logging
import math
import os
import re
from collections.abc import Mapping
from datetime import date, time, timedelta
from numbers import Number
from pathlib import Path
from typing import Any

from fedft import check
from fedft.data import record_files
from fedft.data.record_files import FORMS, Row
from fedft.errors import DataError, first_line, offline

log = logging.getLogger(__name__)

SURROGATE = re.compile(r"[\ud800-\udfff]")
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<one>[\w.-]+))?(?::(?P<two>[\w.-]+))?")
HELD_OUT = re.compile(r"(test|valid|val|dev|eval)(?![a-z])|validation|evaluation", re.IGNORECASE)
"""How the names of files begin that are not to be trained on, beside one that is called "train..."."""
SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` of the library datasets leaves in a folder."""


def read_rows(source: str) -> list[Row]:
    """The records of a file, of several, or of a data set on the Hugging Face hub.

    Args:
        source: path to a file of one of the FORMS, to a folder of such files (what else is in it is said) or one that
            `datasets` saved, or a pattern with "*" (files in the order of their names); else a hub id "owner/name",
            "owner/name:split" or "owner/name:configuration:split", split "train" if not said. HF_HUB_OFFLINE=1 keeps
            to the hub's cache.
    Returns:
        At least one record, in the order of the files. A number that is not one (NaN, which Python and pandas write
        where a value is missing) is None, as null is.
    Raises:
        DataError: naming the file and the line (of a list or table: the record) that is malformed.
    """
    path = Path(source)
    if files := files_of(source):
        if path.is_dir() and (others := sorted(p.name for p in path.iterdir() if p not in files)):
            log.warning("%s: %d of its entries are not read: %s", path, len(others), check.few(others))
        rows = []
        for file in files:
            found = [_clean(row, where) for where, row in record_files.rows(file)]
            if not found and len(files) > 1:
                log.warning("%s holds no records", file)
            rows += found
    else:
        saved = _saved(path) if path.is_dir() else _from_hub(source)
        rows = [_clean(row, f"{source}, record {n}") for n, row in enumerate(saved, 1)]
    if not rows:
        raise DataError(f"{source} holds no records")
    return rows


def files_of(source: str) -> list[Path]:
    """The files that `source` names, in the order in which they are read; none for a hub id or a saved data set.

    Raises DataError for an address, a pattern that matches no file, and a folder that has no file of one of the FORMS,
    or files to train on and to test with.
    """
    path = Path(source)
    if not source:
        raise DataError("[data] train or test is '', wanted a file, a folder, a pattern of files or a hub id")
    if "://" in source:
        raise DataError(f"{source}: an address; wanted a file of this machine, or a hub id 'owner/name'")
    if not path.exists() and glob.has_magic(source):
        paths = [Path(p) for p in sorted(glob.glob(source, recursive=True)) if os.path.isfile(p)]
        if not paths:
            raise DataError(f"{source}: no file is called like that")
        return paths
    if path.is_dir():
        if any((path / name).is_file() for name in SAVED):
            return []
        there = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        paths = [p for p in there if record_files.form_of(p) is not None]
        if not paths:
            raise DataError(f"{path}: a folder without a file {', '.join(FORMS)} (or .gz of one)")
        held = [p.name for p in paths if HELD_OUT.match(p.name)]
        if held and any(p.name.lower().startswith("train") for p in paths):
            raise DataError(
                f"{path}: holds rows to train on and {check.few(held)}; name the file that is meant, or a list"
            )
        return paths
    if not os.path.lexists(path) and re.fullmatch(r"\w[\w-]*", source):
        raise DataError(f"{source}: no such file; a data set of the hub is called 'owner/name'")
    is_file = path.exists() or record_files.form_of(path) is not None or not HUB_ID.fullmatch(source)
    return [path] if is_file else []


def is_plain(value: Any) -> bool:
    """Whether a value has one text: a text itself, a number, a date or time, or null; no list, object or bytes."""
    return value is None or isinstance(value, str | Number | date | time | timedelta)


def value_of(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a record's field. Raises DataError, beginning with `where`, if the record has no such field."""
    if name not in row:
        plain = (name if name.isprintable() and name == name.strip() else repr(name) for name in map(str, row))
        there = ", ".join(plain) or "none"
        raise DataError(f"{where}: no field {name!r}; there are {there}{check.nearest(name, row)}")
    return row[name]


def _clean(row: Row, where: str) -> Row:
    """The record, NaN as None. Raises DataError where it holds what neither text nor a name can be made of."""
    for name, value in row.items():
        row[name] = _cleaned(value, f"{where}: field {name!a}")
        # JSON can say half a character, which neither a tokenizer nor a client's name can hold
        if SURROGATE.search(name):
            raise DataError(f"{where}: field {name!a} is not text: it holds a lone surrogate")
    return row


def _cleaned(value: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        if math.isnan(value):
            return None
        raise DataError(f"{where} is {value}, which is neither a number nor text")
    if isinstance(value, str) and SURROGATE.search(value):
        raise DataError(f"{where} is not text: it holds a lone surrogate")
    if isinstance(value, list):
        return [_cleaned(v, where) for v in value]
    if isinstance(value, dict):
        return {k: _cleaned(v, where) for k, v in value.items()}
    return value


def _saved(path: Path) -> list[Row]:
    """The records of a folder that `Dataset.save_to_disk` wrote; of several splits, those of "train"."""
    import datasets

    try:
        found = datasets.load_from_disk(str(path))
        if not isinstance(found, datasets.DatasetDict) or "train" in found:
            return _rows(found["train"] if isinstance(found, datasets.DatasetDict) else found)
    except Exception as e:  # Arrow's, fsspec's and the library's own errors
        raise DataError(f"{path}: not a data set that datasets can read: {first_line(e)}") from e
    raise DataError(f"{path}: has the splits {', '.join(found)}; wanted the folder of one of them")


def _rows(found: Any) -> list[Row]:
    """The records of a `datasets.Dataset`; numbers of single precision as they are written."""
    columns = (getattr(found, "features", None) or {}).items()
    single = [name for name, feature in columns if getattr(feature, "dtype", None) == "float32"]
    return [row | {name: record_files.shortest(row[name]) for name in single} for row in found]


def _from_hub(source: str) -> list[Row]:
    found = HUB_ID.fullmatch(source)
    assert found is not None
    configuration, split = (found["one"], found["two"]) if found["two"] else (None, found["one"])
    import datasets

    try:
        return _rows(datasets.load_dataset(found["name"], configuration, split=split or "train"))
    except Exception as e:  # network, cache, script and Arrow errors of five libraries, none of them ours
        raise DataError(f"{source}: no such file, and not to be had from the hub{offline()}: {first_line(e)}") from e
