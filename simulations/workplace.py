"""What every client of a simulation shares: the base model, the handle on it, the rows cut into clients."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache as cached
from pathlib import Path
from typing import TYPE_CHECKING

from fedft import durable, strategies
from fedft import run_file as configs
from fedft.arithmetic.tensors_in_file import LARGE
from fedft.carriers.interface import Letter
from fedft.carriers.local import LocalPost
from fedft.client.base_precision import with_bits
from fedft.client.own_privacy import OwnPrivacy
from fedft.client.privacy_ledger import Ledger
from fedft.client.private_state import Kept
from fedft.client.received_state import CohortCache, Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.contract import Layout, State
from fedft.data.examples import Example
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError, RejectedUpdate
from fedft.models import dtypes, resident
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.models.resident import Resident
from fedft.quickstart.base import cache_folder
from fedft.recipe import Recipe
from fedft.server import run_outputs
from fedft.server.checkpoint import Store
from fedft.simulations import batched_turns, devices, virtual_clients
from fedft.update import Plan

if TYPE_CHECKING:
    from fedft.client.secure_sums import SecureSums

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workplace:
    """The base model and the clients of one process, resident from the run's start to its end."""

    config: RunConfig
    recipe: Recipe
    base: Base
    layout: Layout
    handle: ModelHandle
    clients: Mapping[str, Client]
    counted: Mapping[str, int] = field(default_factory=dict)
    """The last round in which a client's update counted, where clients keep something."""
    rows: RowCounts = field(default_factory=RowCounts)
    """What of the rows was cut or left out."""

    def cards(self) -> dict[str, bytes]:
        """The public keys of all clients by name, where their sums are masked."""
        return {name: c.secure.cards[name] for name, c in self.clients.items() if c.secure is not None}

    @property
    def here(self) -> Resident:
        """The resident model without the clients, as a run is opened on it."""
        return Resident(self.base, self.layout, self.handle)

    def stand(self, state: State, client: str | None = None) -> None:
        """Put the resident model at `state`, as a new client would, or as `client` does with what it keeps."""
        kept = self.clients[client].kept.after(self.counted.get(client)) if client is not None else {}
        run_outputs.set_model_to(self.config, self.recipe, self.layout, self.handle, state, kept)


def workplace(
    config: RunConfig,
    recipe: Recipe | None = None,
    *,
    data: bool = True,
    folder: Path | None = None,
    only: Collection[str] | None = None,
    trains: bool = True,
) -> Workplace:
    """Load the base once, cut the data into clients, and put one client on each part; without `data`, none.

    The recipe is the config's. What clients keep for themselves lies in the run's `folder`, or in memory only. With
    `only`, there are these clients and no others; without `trains`, the base is not on its device, see `resident.load`.
    """
    config = dtypes.resolved(config)
    recipe = recipe or strategies.of(config)
    # cheap and likely mistakes (a file that is not there) come before the model is loaded
    rows = RowCounts()
    parts = virtual_clients.rows_by_client(config, rows) if data else {}
    profiles = devices.profiles(config, parts)
    at = folder and folder / "clients"
    secure = _secure_sums(config, recipe, at, parts)
    if only is not None:
        parts = {name: parts[name] for name in parts if name in only}
    here = resident.load(config, recipe, trains=trains)
    of_bits = _bases(config, recipe, trains=trains) if recipe.bases == "any" and recipe.plans_work else None
    cache = CohortCache()
    clients = {
        name: Client(
            name,
            train,
            test,
            here.base,
            here.handle,
            recipe,
            config,
            Memory(cache),
            Kept(own := at and at / durable.folder_name(name)),
            OwnPrivacy(Ledger(own), own),
            secure=secure.get(name),
            profile=profiles.get(name, {}),
            in_bits=of_bits,
        )
        for name, (train, test) in virtual_clients.encode(
            parts, config, here.base, rows, cache_folder() / "tokens"
        ).items()
    }
    cache.members += [c.memory for c in clients.values()]
    return Workplace(config, recipe, here.base, here.layout, here.handle, clients, rows=rows)


def _secure_sums(
    config: RunConfig, recipe: Recipe, folder: Path | None, names: Collection[str]
) -> "Mapping[str, SecureSums]":
    """See `secure_keys.secure_sums`, which brings its libraries with it."""
    if config.privacy.secagg != "on":
        return {}
    from fedft.simulations import secure_keys

    return secure_keys.secure_sums(config, recipe, folder, names)


def _bases(config: RunConfig, recipe: Recipe, *, trains: bool) -> Callable[[int], tuple[Base, ModelHandle]]:
    """Gives the base in so many bits, with a handle; each that was asked for stays loaded, beside the run's own."""

    @cached
    def of_bits(bits: int) -> tuple[Base, ModelHandle]:
        log.info("the base is loaded once more, in %d bits", bits)
        here = resident.load(replace(config, model=with_bits(config.model, bits)), recipe, trains=trains)
        return here.base, here.handle

    return of_bits


def reopen(folder: Path, *, data: bool = True) -> tuple[Workplace, State]:
    """The workplace of a finished or interrupted run, its model standing at the newest state."""
    if not (folder / "config.toml").exists():
        raise ConfigError(f"{folder}: not a run folder, there is no config.toml")
    config = configs.load(folder / "config.toml", where=str(folder / "config.toml"))
    found = Store(folder / "state").latest(recover=False)
    if found is None:
        raise ConfigError(f"{folder}: the run has no state yet")
    place = replace(workplace(config, data=data, folder=folder), counted=found[1].get("counted", {}))
    for client in place.clients.values():
        client.kept.open(found[1]["run"])
    place.stand(found[0])
    return place, found[0]


def local_post(clients: Mapping[str, Client]) -> LocalPost:
    """The post that carries letters to clients of this process, one at a time but for `[server] together`."""
    begin, most = batched_turns.starter(clients)

    def read(letter: Letter, payload: bytes) -> bytes | Plan:
        """A long plan, so that letters which wait hold the state that the server has; else the bytes."""
        if letter.kind in ("query", "secagg") or len(payload) < LARGE:
            return payload
        try:
            return clients[letter.client].read(payload, letter.tensors)
        except RejectedUpdate:
            return payload  # the client says so when it is its turn

    return LocalPost({name: client.answer for name, client in clients.items()}, begin, most, read)


def whose(clients: Mapping[str, Client]) -> Iterator[bytes]:
    """Bytes that say whose rows the run trains on, from which its identifier is made."""
    for name, client in sorted(clients.items()):
        yield name.encode()
        for row in client.train_rows:
            yield str((row.input_ids, row.labels) if isinstance(row, Example) else row).encode()
