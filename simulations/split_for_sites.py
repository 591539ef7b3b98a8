"""A simulation's clients as the folders of sites: a deployment rehearsed on one machine.

    <to>/north/site.toml            to be served with `fedft client`; its policy allows this run and nothing larger
    <to>/north/train.jsonl          all rows of the client `north`, in the order the simulation has them
    <to>/north/test.jsonl           its rows of the test file, where the run has one; may be empty
    <to>/north/keys/                with `keys`: its own keys and the server's public ones; enrolled in the roster
    <to>/north/roster.toml          likewise, of runs with secure sums: the public keys of all sites

A site that is called like the simulated client trains and evaluates on the same examples in the same order.
"""

import json
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedft import durable, registry
from fedft.config import LOCAL, RunConfig
from fedft.data.client_datasets import Rows, said
from fedft.errors import ConfigError, DataError
from fedft.models import dtypes
from fedft.security.sealed import site_name
from fedft.simulations import virtual_clients
from fedft.training.metrics import interface as metrics

FROM_SERVER = ("ca.pem", "server.pub")
ROSTER = "roster.toml"

log = logging.getLogger(__name__)


def split(config: RunConfig, to: Path, *, server: str, keys: Path | None = None) -> list[Path]:
    """Write a folder for each client of `config`; returns the site files in order of client name.

    Args:
        to: folder to write; must not exist or be empty.
        server: host:port of the server.
        keys: the server's key folder. The sites get keys and are enrolled there; None: the site files name
            keys that are not there yet.
    Raises:
        ConfigError: `to` is not empty, a site of this name is enrolled already, or the key folder is not one.
        DataError: what is wrong with the data.
    """
    config = dtypes.resolved(config)  # the policy allows the length that the run will have
    owned, held = virtual_clients.whole_by_client(config)
    names = {client: _site_name(client) for client in owned}
    folders = {client: to / durable.folder_name(client) for client in owned}
    _say_what_would_be_cut(config, owned)
    if keys is not None:
        _check_keys(keys, set(names.values()))
    if len(set(folders.values())) < len(folders):
        raise ConfigError(f"--to {to}: two clients would share a folder; rename one of them in the data")
    try:
        to.mkdir(parents=True, exist_ok=True)
        if any(to.iterdir()):
            raise ConfigError(f"--to {to}: is not empty")
        for folder in folders.values():
            folder.mkdir()
    except OSError as e:
        raise ConfigError(f"--to {to}: cannot be written: {e.strerror}") from e
    for client, folder in folders.items():
        durable.write(folder / "train.jsonl", _json_lines(owned[client], said(config.data.train)))
        if config.data.test is not None:
            durable.write(folder / "test.jsonl", _json_lines(held[client], said(config.data.test)))
        durable.write(folder / "site.toml", _site_file(config, names[client], server, len(owned[client])).encode())
        if keys is not None:
            _enrol(folder / "keys", names[client], keys)
    if keys is not None and config.privacy.secagg == "on":
        for folder in folders.values():  # what operators hand to each other, where there are several
            durable.write(folder / ROSTER, (keys / ROSTER).read_bytes())
    return [folder / "site.toml" for folder in folders.values()]


def _say_what_would_be_cut(config: RunConfig, owned: Mapping[str, Rows]) -> None:
    """Where the deployment of a run file counts a client less than its simulation does: a warning that names it."""
    largest, rows = max(owned, key=lambda c: len(owned[c])), sum(map(len, owned.values()))
    share, most = len(owned[largest]) / max(1, rows), config.limits.share(deployed=True)
    if config.limits.max_share is None and len(owned) > 2 and share > most:
        log.warning(
            "client %s has %.0f %% of all rows: a deployment cuts its weight to %.0f %%, a simulation does not; "
            "[limits] max_share in the run file says the same to both",
            largest, 100 * share, 100 * most,
        )  # fmt: skip


def _site_name(client: str) -> str:
    try:
        return site_name(client)
    except ValueError:
        name = durable.folder_name(client)
        log.warning("client %r cannot be a site's name; as %r it holds out and draws other rows", client, name)
        return name


def _json_lines(rows: Rows, source: str) -> bytes:
    try:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    except (TypeError, ValueError) as e:
        raise DataError(f"{source}: a record cannot be written as JSON: {e}") from e


def _own(table: Any, keys: Collection[str]) -> dict[str, Any]:
    """What a table of the run file says of these keys, which are a site's own; what is off is left out."""
    return {key: value for key in sorted(keys) if (value := getattr(table, key))}


def _site_file(config: RunConfig, name: str, server: str, rows: int) -> str:
    targets = config.model.targets
    tables: dict[str, dict[str, Any]] = {
        "site": {"name": name},
        "server": {"address": server, **{k: f"keys/{f}" for k, f in zip(("ca", "key"), FROM_SERVER, strict=True)}},
        "keys": {"folder": "keys"} | ({"roster": ROSTER} if config.privacy.secagg == "on" else {}),
        "model": {"id": _model(config.model.id)} | _own(config.model, {*LOCAL["model"]} - {"id"}),
        "data": {"train": "train.jsonl"} | _data(config),
        "local": _own(config.local, LOCAL["local"]),
        "policy": {
            "strategies": _strategies(config),
            "plugins": _plugins(config),
            "codecs": _codecs(config),
            "metrics": metrics.asked(config.eval),
            "targets": [*([targets] if isinstance(targets, str) else targets), *config.model.modules_to_save],
            "max_rank": max(*config.ranks(), config.model.repair_rank or 0),
            "max_steps": max(config.local.steps, config.local.steps_over(rows)),
            "max_learning_rate": config.local.learning_rate,
            "max_batch_size": max(config.local.batch_size, config.eval.batch_size),
            "max_tokens": _tokens(config),
            **_privacy(config),
        },
    }
    return "# Written by `fedft split`: one client of a simulation as a site.\n\n" + tomli_w.dumps(tables)


def _privacy(config: RunConfig) -> dict[str, Any]:
    """What the run hides is the least that its sites require; noise that hides nothing they allow for a rehearsal."""
    p = config.privacy
    require = [*([p.mode] if p.on else []), *(["secagg"] if p.secagg == "on" else [])]
    return {**({"require": require} if require else {}), **({"seeded_noise": True} if p.noise == "seeded" else {})}


def _tokens(config: RunConfig) -> int:
    assert config.data.max_length != "auto"
    return max(config.data.max_length, config.data.max_prompt or 0, config.eval.generate_tokens)


def _data(config: RunConfig) -> dict[str, str]:
    """What else a site says of its rows: a chat template or a function is a program, and is the site's own."""
    said = {"test": "test.jsonl"} if config.data.test is not None else {}
    return said | {
        key: value for key in ("chat_template", "encode") if (value := getattr(config.data, key)) is not None
    }


def _strategies(config: RunConfig) -> list[str]:
    """The run's strategy, and those of other packages that it works on."""
    first, *below = (name for name, _ in registry.tower(config.strategy.name, config.strategy.options))
    return [first, *(name for name in below if name not in registry.BUILT_IN)]


def _codecs(config: RunConfig) -> list[str]:
    """The run's codecs of other packages, without a selection in front of them."""
    names = {said.rpartition("|")[2].strip() for said in (config.codec.up, config.codec.down)}
    return sorted(name for name in names if name.partition(":")[0] not in registry.codecs.built_in)


def _plugins(config: RunConfig) -> list[str]:
    """What of installed packages the run names that a site has to allow by name."""
    names = {registry.named(choice, r.kind)[0]: r for r, choice in config.in_job()}
    return sorted(name for name, r in names.items() if name not in r.built_in and name in r)


def _model(id: str) -> str:
    return os.path.abspath(id) if os.path.isdir(id) else id


def _check_keys(keys: Path, names: set[str]) -> None:
    from fedft.security.roster import load_roster

    for name in FROM_SERVER:
        if not (keys / name).is_file():
            raise ConfigError(f"--keys {keys}: there is no {name}; wanted the server's key folder")
    if twice := sorted(names & load_roster(keys / ROSTER).members.keys()):
        raise ConfigError(f"--keys {keys}: site {twice[0]!r} is enrolled already; another key folder, or other names")


def _enrol(folder: Path, name: str, server_keys: Path) -> None:
    from fedft.security import new_keys, roster

    new_keys.make_site(folder, name)
    for file in FROM_SERVER:
        durable.write(folder / file, (server_keys / file).read_bytes())
    (card,) = (path for path in folder.iterdir() if path.name.endswith(".card.toml"))
    roster.enrol(server_keys / ROSTER, card)
