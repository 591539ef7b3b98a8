"""A site file (TOML) becomes a checked `SiteConfig`.

Unknown tables and keys are refused with the nearest known one, and every file that is named must be there.
"""

import glob
import math
import os
import re
import typing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedft import check, quickstart
from fedft.client import open_hours
from fedft.client.site_settings import SiteConfig, SiteData
from fedft.compression import codec_names
from fedft.data import template_checks
from fedft.errors import ConfigError
from fedft.privacy.tables import Audit, check_audit
from fedft.run_file import check_tables, checked_table, read
from fedft.security.sealed import site_name

ADDRESS = re.compile(r"(?:[^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
DIGEST = re.compile(r"[0-9a-f]{12,64}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
BITS = (32, 16, 8, 4)
LEAST_MBIT_S = 1  # the server gives an answer's place to the next at 0.8, see `open_letter`
PATHS = {
    "site": {"state": "a folder"},
    "server": {"ca": "a file", "key": "a file"},
    "keys": {"folder": "a folder", "roster": "a file"},
    "local": {"device_lock": "a file, in a folder that is there"},
    "model": {"id": "a model folder or a hub id owner/name"},
    "data": {"train": "a file, a folder or a pattern of files", "test": "a file, a folder or a pattern of files"},
}
"""What must be there, by table and key."""


def load(path: Path) -> SiteConfig:
    """The checked config of the site file at `path`. Raises ConfigError in one line.

    Paths may use `$VARIABLES` and `~`; relative ones mean relative to the file.
    """
    tables = read(path, "no such site file")
    check_tables(SiteConfig, tables, f"{path}", "a site file")
    built: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(SiteConfig).items():
        where = f"{path}: [{name}]"
        table = checked_table(kind, tables.get(name, {}), where)
        found = {key: _found(name, key, getattr(table, key), path.parent, where) for key in PATHS.get(name, ())}
        built[name] = replace(table, **found)
        if name == "data":
            built[name] = _forms(built[name], path)
    config = SiteConfig(**built)
    _check(config, path)
    return config


def _forms(data: SiteData, path: Path) -> SiteData:
    """The table with the text of its chat template; ConfigError where the form of records makes no sense."""
    try:
        said = {"prompt or response": data.prompt or data.response, "messages": data.messages, "tokens": data.tokens}
        if len(forms := [form for form, name in said.items() if name is not None]) > 1:
            raise ValueError(f"[data] {' and '.join(forms)}: a record has one form; leave out one")
        for key in template_checks.TEMPLATES:
            if template := getattr(data, key):
                template_checks.check_names_field(key, template)
        if data.chat_template is None:
            return data
        text = template_checks.chat_template(data.chat_template, path.parent)
        template_checks.check_is_jinja(text)
        return replace(data, chat_template=text)
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e


def _found(table: str, key: str, value: str | list[str] | None, folder: Path, where: str) -> Any:
    """The absolute path that a key means, if what it wants is there; so for each of a list."""
    if isinstance(value, list):
        return [_found(table, key, one, folder, where) for one in value]
    if value is None or (key in ("id", "train") and value in (quickstart.BASE, quickstart.ROWS)):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    if left := re.search(r"\$\{?(\w+)", expanded):
        raise ConfigError(f"{where} {key} = {value!r}: the variable {left[1]} is not set")
    path, wanted = os.path.abspath(folder / expanded), PATHS[table][key]
    there = os.path.isdir(path) if wanted != "a file" else os.path.isfile(path)
    if table == "data":
        there = os.path.exists(path) or any(glob.iglob(path, recursive=True))
    if key == "device_lock" and (not expanded or os.path.isfile(path) or os.path.isdir(os.path.dirname(path))):
        return path if expanded else ""
    if expanded and (there or (key == "state" and not os.path.lexists(path))):
        return path
    if key == "id" and HUB_ID.fullmatch(expanded):
        return expanded
    raise ConfigError(f"{where} {key} = {value!r}: wanted {wanted}, there is none at {path}")


def _check(c: SiteConfig, path: Path) -> None:
    try:
        site_name(c.site.name)
        if c.site.hours is not None:
            open_hours.parsed(c.site.hours)
        if (rate := c.site.max_mbit_s) is not None and not LEAST_MBIT_S <= rate < math.inf:
            wanted = f"wanted {LEAST_MBIT_S} or more: a slower answer is asked for twice"
            raise ValueError(f"[site] max_mbit_s is {rate:g}, {wanted}")
        address = ADDRESS.fullmatch(c.server.address)
        if not (address and 0 < int(address["port"]) < 65536):
            raise ValueError(f"[server] address is {c.server.address!r}, wanted host:port")
        for name in ("signing.key", "node.key"):
            if not os.path.isfile(os.path.join(c.keys.folder, name)):
                raise ValueError(f"[keys] folder = {c.keys.folder!r}: there is no {name} in it")
        if c.data.value is not None and c.data.client is None:
            raise ValueError("[data] value needs client, the field that says it")
        check_audit(Audit(**{**asdict(c.audit), "seed": c.audit.seed or 0}))
        p = c.policy
        check.at_least(1, threads=c.local.threads, max_models=c.local.max_models)
        check.at_least(1, max_rank=p.max_rank, max_steps=p.max_steps)
        if isinstance(c.local.micro_batch, int):
            check.at_least(1, micro_batch=c.local.micro_batch)
        check.at_least(1, max_batch_size=p.max_batch_size, max_tokens=p.max_tokens, max_download_mib=p.max_download_mib)
        check.at_least(0, max_learning_rate=p.max_learning_rate)
        if p.max_memory_mib is not None:
            check.at_least(1, max_memory_mib=p.max_memory_mib)
        if p.max_epsilon is not None:
            check.above(0, max_epsilon=p.max_epsilon)
        check.above(0, delta=p.delta)
        check.between(0, 1, delta=p.delta)
        check.at_least(3, min_cohort=p.min_cohort)
        if c.privacy.rows is not None:
            check.at_least(1, rows=c.privacy.rows)
        if not (p.bits and {*p.bits} <= {*BITS}):
            raise ValueError(f"[policy] bits is {p.bits}, wanted some of {', '.join(map(str, BITS))}")
        for digest in p.base or ():
            if not DIGEST.fullmatch(digest):
                raise ValueError(f"[policy] base holds {digest!r}, wanted 12 to 64 hexadecimal digits in lower case")
        _check_strategies(p.strategies)
        _check_plugins(p.plugins)
        for name in p.codecs:
            codec_names.parse(name)  # imports it: from here on a message may name it
    except ValueError as e:
        raise ConfigError(f"{path}: {e}") from e


def _check_strategies(names: list[str]) -> None:
    """A name that cannot be loaded is a typing mistake; found now, not when a server first asks."""
    from fedft.registry import strategies

    for name in names:
        if ":" not in name and name not in strategies:
            known = strategies.names()
            raise ValueError(
                f"[policy] strategies: no strategy {name!r}; there are {', '.join(known)}{check.nearest(name, known)}"
            )


def _check_plugins(names: list[str]) -> None:
    """A name that no installed package has is a typing mistake too."""
    from fedft.registry import IN_JOBS

    known = {name for r in IN_JOBS for name in r.names()} if names else set()
    for name in names:
        if name not in known:
            raise ValueError(
                f"[policy] plugins: no adapter, objective, optimizer or transform {name!r} is installed here; "
                f"there are {', '.join(sorted(known))}{check.nearest(name, known)}"
            )
