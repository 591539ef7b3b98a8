"""What a Python caller has in memory (rows, data frames, data sets, a loaded model), as files of the run's folder.

    <folder>/inputs/train.jsonl, test.jsonl       one record a line, whose owner is in the field `[data] client`
    <folder>/inputs/base/                         the model and its tokenizer

So a run that began in Python has a `config.toml` as any other: it resumes, is measured and exported by its folder.
"""

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import date, time
from pathlib import Path
from typing import Any

from fedft import run_file
from fedft.config import Data, RunConfig
from fedft.errors import ConfigError
from fedft.server.run_folder import INPUTS

SOURCES = ("train", "test")


def config_of(run: Path | None, tables: Mapping[str, Any], folder: Path, *, resume: bool) -> RunConfig:
    """The checked config of a run file with `tables` over it, what they hold in memory written below `folder`.

    Args:
        run: the run file; None: defaults.
        tables: each a table of a run file by its name, or what `simulate` takes in its place.
        folder: of the run.
        resume: whether what was written when the run began has to be what is given now.
    Raises:
        ConfigError: a value that is none of these, or another than the run began with.
    """
    inside = folder / INPUTS
    said = {name: _table(name, value) for name, value in tables.items()}
    own = said.get("data", {}).get("client", Data.client)
    if not resume and (folder / "config.toml").exists():
        raise ConfigError(f"{folder}: holds a run already; resume=True continues it, another folder starts anew")
    for key in SOURCES:
        if key in said.get("data", {}) and not _is_text(value := said["data"][key]):
            text = "".join(f"{json.dumps(row, default=plain)}\n" for row in _rows(value, own, f"data[{key!r}]"))
            said["data"][key] = str(_written(inside / f"{key}.jsonl", text, resume=resume))
    if "model" in said and hasattr(said["model"].get("id"), "save_pretrained"):
        said["model"]["id"] = str(
            _saved(said["model"].pop("id"), said["model"].pop("tokenizer", None), inside / "base")
        )
    return run_file.load(run, tables=said)


def _table(name: str, value: Any) -> dict[str, Any]:
    """A table of this name: as it is, or what stands for its most important key."""
    if name == "strategy" and isinstance(value, str):
        return {"name": value}
    if name == "model" and not isinstance(value, Mapping):
        model, tokenizer = value if isinstance(value, tuple) and len(value) == 2 else (value, None)
        found = {"id": str(model) if isinstance(model, Path) else model}
        return found if tokenizer is None else {**found, "tokenizer": tokenizer}
    if name == "data" and not (isinstance(value, Mapping) and value.keys() <= {f.name for f in fields(Data)}):
        return {"train": str(value) if isinstance(value, Path) else value}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {type(value).__name__}, wanted a dictionary of the keys of [{name}]")
    for key, said in value.items():
        for one in said if isinstance(said, list) else [said]:
            if inspect.isroutine(one) or inspect.isclass(one):
                own = f"{one.__module__}:{one.__qualname__}"
                raise ConfigError(
                    f"{name}[{key!r}] is {getattr(one, '__name__', one)}, and a run is resumed from its files alone: "
                    f'wanted its name, as "package.module:function", here {own!r}, and allow=[{own!r}]'
                )
    return dict(value)


def _is_text(value: Any) -> bool:
    """Whether a source is named, as in a run file, and not given."""
    return isinstance(value, str | Path) or (isinstance(value, list) and bool(value) and isinstance(value[0], str))


def _rows(value: Any, client: str, where: str) -> Iterator[dict[str, Any]]:
    """The records of rows, a data frame or a data set; of a mapping of them each with its owner's name in `client`."""
    if isinstance(value, Mapping):
        for owner, theirs in value.items():
            for row in _rows(theirs, client, f"{where}[{owner!r}]"):
                if row.get(client, owner) != owner:
                    raise ConfigError(f"{where}: rows of {owner!r} say {client} = {row[client]!r}")
                yield {client: owner, **row}
        return
    records = value.to_dict("records") if hasattr(value, "to_dict") and hasattr(value, "columns") else value
    if not isinstance(records, Iterable):
        raise ConfigError(
            f"{where} is {type(value).__name__}; wanted rows, a data frame, a data set, or such by client"
        )
    for number, row in enumerate(records, 1):
        if not isinstance(row, Mapping):
            raise ConfigError(f"{where}: record {number} is {type(row).__name__}, wanted a dictionary of named values")
        yield dict(row)


def plain(value: Any) -> Any:
    """What JSON has for a value that it does not know: a number of numpy, a date."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    raise ConfigError(f"a record holds {type(value).__name__}, wanted texts, numbers, lists and dictionaries")


def _written(path: Path, text: str, *, resume: bool) -> Path:
    """The file with this text; of a run that goes on it has to be there. Raises ConfigError."""
    if resume:
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            raise ConfigError(f"resume=True: the rows given are not those that the run began with, {path}")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path.resolve()


def _saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    """The folder of a loaded model and its tokenizer. Raises ConfigError without the one, or with an adapter."""
    if tokenizer is None:
        raise ConfigError("model is loaded, but its tokenizer is not given; wanted model=(model, tokenizer)")
    if hasattr(model, "peft_config"):
        raise ConfigError("model has an adapter already; wanted the base model, or model.merge_and_unload()")
    if not folder.exists():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder.resolve()
