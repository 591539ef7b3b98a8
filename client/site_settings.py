"""A site file (TOML) becomes a frozen, checked `SiteConfig`: who we are, whom we talk to, and what we allow.

The server says what a run is; this file says where the model and the rows are, and its [policy] outranks the server.
Unknown tables and keys are refused with the nearest known one, and every file that is named must be there.
"""

import glob
import os
import re
import typing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from fedft import check, quickstart
from fedft.compression import codec_names
from fedft.data import template_checks
from fedft.errors import ConfigError
from fedft.run_file import checked_table, read
from fedft.security.sealed import site_name

ADDRESS = re.compile(r"(?:[^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+\]):(?P<port>[0-9]{1,5})")
DIGEST = re.compile(r"[0-9a-f]{12,64}")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
PATHS = {
    "site": {"state": "a folder"},
    "server": {"ca": "a file", "key": "a file"},
    "keys": {"folder": "a folder"},
    "model": {"id": "a model folder or a hub id owner/name"},
    "data": {"train": "a file, a folder or a pattern of files", "test": "a file, a folder or a pattern of files"},
}
"""What must be there, by table and key."""


@dataclass(frozen=True)
class Site:
    """[site]: the name of this site, and where it keeps what it needs between rounds."""

    name: str
    """As the server's operator enrolled us; at most 64 bytes."""
    state: str = "fedft-site"
    """Folder of what we keep between rounds: memory, uploads that are not yet acknowledged. Made when needed."""


@dataclass(frozen=True)
class SiteServer:
    """[server]: the one machine that the site contacts, and how it is known to be the right one."""

    address: str
    """"host:port"."""
    ca: str = "keys/ca.pem"
    """Certificate of the authority that signed the server's; no other is trusted."""
    key: str = "keys/server.pub"
    """The server's public Ed25519 key: what it did not sign is not read."""


@dataclass(frozen=True)
class Keys:
    """[keys]: the site's own private keys."""

    folder: str = "keys"
    """Holds signing.key and node.key, readable by us alone."""


@dataclass(frozen=True)
class SiteModel:
    """[model]: the base model; the server's must have the same digest."""

    id: str
    """Model folder, hub id, or "stdlib-base"."""
    device: str = "cpu"
    """torch device."""


@dataclass(frozen=True)
class SiteData:
    """[data]: the site's rows. What is said here about their form outranks what the server says."""

    train: str | list[str]
    """A file, folder or pattern of files as in a run file, a list of them, or "stdlib-docstrings"."""
    test: str | list[str] | None = None
    """Held-out records; left out: the share of `train` that the server asks for. An empty file: none."""
    client: str | None = None
    """Field by which a shared file is filtered; left out: all rows are ours."""
    value: str | None = None
    """What that field says in rows of ours; left out: the site's name."""
    prompt: str | None = None
    """Template of what is given."""
    response: str | None = None
    """Template of what is learned."""
    chosen: str | None = None
    """Pairs of answers: template of the better one, or the field of its messages."""
    rejected: str | None = None
    """Pairs of answers: the same of the worse one."""
    messages: str | None = None
    """Field that holds a conversation; then `prompt` and `response` are not said here."""
    chat_template: str | None = None
    """A file with the Jinja template of conversations, or its text; left out: the tokenizer's own. A server's is only
    used if it is the same."""
    tokens: str | None = None
    """Field that holds token ids; then `prompt`, `response` and `messages` are not said here."""
    text: str | None = None
    """Classification: template of the input."""
    label: str | list[str] | None = None
    """Classification: field of the label, or one for each label."""


@dataclass(frozen=True)
class SiteLocal:
    """[local]: how the site uses its machine."""

    threads: int = 1
    """torch threads."""


@dataclass(frozen=True)
class Policy:
    """[policy]: what a server may ask of the site; more is refused before any model is loaded."""

    strategies: list[str] = field(default_factory=list)
    """Strategies by name, exactly; empty: none. No other code is imported for a server."""
    codecs: list[str] = field(default_factory=list)
    """Codecs of installed packages, as a run file names them ("mine:0.5"); those that are built in are allowed."""
    plugins: list[str] = field(default_factory=list)
    """Adapters, objectives, optimizers and transforms of installed packages by name; those that are built in are
    allowed."""
    base: list[str] | None = None
    """Digests of base models, or their first 12 or more digits; left out: whatever [model] id is."""
    targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Layers that may be trained, as in a run file; "all-linear" allows all of them, and full fine-tuning, but a
    regular expression only where it stands here itself."""
    max_rank: int = 64
    """LoRA rank."""
    max_steps: int = 1000
    """Optimiser steps per round."""
    max_learning_rate: float = 1e-2
    """Of the local optimiser."""
    max_batch_size: int = 64
    """Records per step."""
    max_tokens: int = 4096
    """Tokens per record, and per generated text."""
    max_download_mib: int = 4096
    """Memory, in MiB, of what a plan brings, and of what the site holds where that is added to it. A longer message is
    refused before it is taken in, and no tensor is decoded of more."""
    metrics: list[str] = field(default_factory=lambda: ["exact_match", "rouge_l"])
    """Metrics, beside loss and accuracy, that may be measured on our held-out rows; exactly these, empty: none."""


@dataclass(frozen=True)
class SiteConfig:
    """A whole site file, one field per table. All paths are absolute."""

    site: Site
    server: SiteServer
    model: SiteModel
    data: SiteData
    keys: Keys = Keys()
    local: SiteLocal = SiteLocal()
    policy: Policy = Policy()


def load(path: Path) -> SiteConfig:
    """The checked config of the site file at `path`. Raises ConfigError in one line.

    Paths may use `$VARIABLES` and `~`; relative ones mean relative to the file.
    """
    tables = read(path, "no such site file")
    known = [f.name for f in fields(SiteConfig)]
    for name, table in tables.items():
        if name not in known:
            there = check.nearest(name, known) or f"; a site file has {', '.join(known)}"
            raise ConfigError(f"{path}: no table [{name}]{there}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} is a value, wanted a table [{name}]")
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
    if expanded and (there or (key == "state" and not os.path.lexists(path))):
        return path
    if key == "id" and HUB_ID.fullmatch(expanded):
        return expanded
    raise ConfigError(f"{where} {key} = {value!r}: wanted {wanted}, there is none at {path}")


def _check(c: SiteConfig, path: Path) -> None:
    try:
        site_name(c.site.name)
        address = ADDRESS.fullmatch(c.server.address)
        if not (address and 0 < int(address["port"]) < 65536):
            raise ValueError(f"[server] address is {c.server.address!r}, wanted host:port")
        for name in ("signing.key", "node.key"):
            if not os.path.isfile(os.path.join(c.keys.folder, name)):
                raise ValueError(f"[keys] folder = {c.keys.folder!r}: there is no {name} in it")
        if c.data.value is not None and c.data.client is None:
            raise ValueError("[data] value needs client, the field that says it")
        p = c.policy
        check.at_least(1, threads=c.local.threads, max_rank=p.max_rank, max_steps=p.max_steps)
        check.at_least(1, max_batch_size=p.max_batch_size, max_tokens=p.max_tokens, max_download_mib=p.max_download_mib)
        check.at_least(0, max_learning_rate=p.max_learning_rate)
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
