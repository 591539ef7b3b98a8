"""What `fedft plan` knows of a run: its base without weights, its clients' rows, and the memory that there is."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from fedft.client.site_settings import SiteConfig
    from fedft.config import RunConfig
    from fedft.forecast.rows import Rows
    from fedft.forecast.seconds import Device
    from fedft.forecast.work import Forecaster
    from fedft.models.load import Base
    from fedft.server.memory_need import ServerMemory

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Planned:
    """A run that has not begun, as this machine would carry it out."""

    of: "Forecaster"
    base: "Base"
    rows: "Mapping[str, Rows]"
    """By client; one that stands for all where the rows are not here."""
    limits: Mapping[str, int]
    """Bytes of memory by whose limit it is."""
    disk: int | None
    """Bytes of the run folder at the end; None: at a site."""
    server: "ServerMemory | None"
    """What the process of a server takes that has no clients in it; None: at a site."""
    privacy: Mapping[str, Any]
    """See `fedft.forecast.privacy_cost.cost`."""
    devices: "Mapping[str, Device]" = field(default_factory=dict)
    """Of each client, where the run file deals out virtual ones."""

    @property
    def limit(self) -> tuple[int | None, str]:
        """(the smallest limit, whose it is); (None, "") where nobody says one."""
        whose = min(self.limits, key=lambda k: self.limits[k], default="")
        return self.limits.get(whose), whose


def read(config: "RunConfig", site_path: Path | None) -> Planned:
    """The run of a run file, at the site of a site file if there is one.

    Raises ConfigError, DataError or PlanRefused in one line for what is wrong with either.
    """
    import torch

    from fedft import strategies
    from fedft.aggregation import robust_rules
    from fedft.client import allowed_jobs, job_limits, site_file, work_limit
    from fedft.forecast.anatomy import anatomy_of
    from fedft.forecast.memory import base_bytes
    from fedft.forecast.work import Forecaster
    from fedft.models import free_memory, lengths
    from fedft.models.load import device_of
    from fedft.models.skeleton import skeleton
    from fedft.server import disk_need, foreseen_privacy, memory_need, open_run

    config, site = open_run.resolved(config), None
    if site_path is not None:
        site = site_file.load(site_path)
        job_limits.check_limits(config, site.policy)
        work_limit.check_run(config, site.policy)
        config = open_run.resolved(allowed_jobs.carried_out(config, site))
    recipe, base = strategies.of(config), skeleton(config.model)
    robust_rules.check(config, recipe, deployed=site is not None)
    lengths.check_lengths(base, config)
    layout = recipe.space.layout(_layout(config, base, recipe.space.of_base))
    rows = _rows(config, base, site)
    clients = len(rows) if site is None else config.data.clients or 1
    asked = min(config.clients.per_round or clients, config.server.buffer or clients, clients)
    try:
        limits = free_memory.limits(device_of(config.model.device))
    except DataError as e:
        log.warning("%s; its memory is not known", e)
        limits = {}
    if config.model.device.startswith("cuda"):
        limits = {whose: int(0.92 * n) for whose, n in limits.items()}  # the rest is lost between blocks
    if site is not None and site.policy.max_memory_mib is not None:
        limits["[policy] max_memory_mib"] = site.policy.max_memory_mib * allowed_jobs.MIB
    disk = disk_need.foreseen(config, recipe, layout, clients).whole if site is None else None
    torch.set_num_threads(config.local.threads)
    anatomy = anatomy_of(base, config.model.modules_to_save)
    weights = base_bytes(anatomy, config.model.bits)
    server = memory_need.foreseen(config, recipe, layout, clients, weights) if site is None else None
    of = Forecaster(anatomy, layout, config, recipe, asked=asked)
    known, at_server = {name: r.train for name, r in rows.items()}, config.privacy.mode == "central-dp"
    foreseen = {} if site is not None and at_server else foreseen_privacy.of_run(config, recipe, layout, known)
    return Planned(of, base, rows, limits, disk, server, foreseen, _devices(config, rows) if site is None else {})


def _devices(config: "RunConfig", clients: Collection[str]) -> "dict[str, Device]":
    """The virtual device of each client: its own seconds, less jitter and hours in which it is off."""
    from fedft.forecast.seconds import Device
    from fedft.simulations import devices

    devices.check_devices(config)
    return {name: Device(of.flops, up=of.up, down=of.down) for name, of in devices.dealt(config, clients).items()}


def _layout(config: "RunConfig", base: "Base", of_base: bool) -> Any:
    from fedft.models.layout import layout_of

    m = config.model
    return layout_of(base, []) if of_base else layout_of(
        base, m.targets, layers=m.layers, modules_to_save=m.modules_to_save
    )  # fmt: skip


def _rows(config: "RunConfig", base: "Base", site: "SiteConfig | None") -> "dict[str, Rows]":
    """What is known of each client's rows; where they cannot be read the run file's limits stand for one client."""
    from fedft.data import client_datasets
    from fedft.forecast.rows import Rows, of_records
    from fedft.simulations import virtual_clients

    try:
        if site is not None:
            name, d = site.site.name, site.data
            parts: Any = {name: client_datasets.of_site(config, name, d.client, d.value)}
        else:
            parts = virtual_clients.rows_by_client(config)
        return of_records(parts, config, base)
    except DataError as e:
        if site is not None or config.data.train == type(config.data)().train:
            raise
        log.warning(
            "%s; planned for %d clients with rows of %d tokens", e, config.data.clients or 1, config.data.length
        )
        return {f"client {n}": Rows() for n in range(config.data.clients or 1)}


def speed_of(flops: float | None, up: float | None, down: float | None) -> Any:
    """What is declared of a client's machine, as a `Device`; ConfigError for numbers that are not above 0."""
    from fedft.forecast.seconds import Device

    for name, value in (("--flops", flops), ("--up", up), ("--down", down)):
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{name} is {value:g}, wanted a number above 0")
    return Device(flops, up=up, down=down)
