"""The toy deployment of `deployed` with secure sums: sites with keys of their own and the roster of all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from deployed import OPTIONS, SERVER_KEY, Direct, Site, ToyBase, ToyClient, key_of, roster
from virtual_clock import Clock

from fedft import run_file, strategies, testing
from fedft.carriers.interface import Link
from fedft.carriers.local import LocalPost
from fedft.client.own_privacy import OwnPrivacy
from fedft.client.privacy_ledger import Ledger
from fedft.client.private_state import Kept
from fedft.client.secure_sums import SecureSums
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.contract import State, Turn
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.reports.metric_log import MetricsFile
from fedft.server import guards
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.job import told
from fedft.server.loop import Loop
from fedft.server.sealed_post import SealedPost
from fedft.update import Job, Update

NAMES = ("anna", "bert", "carl", "dora", "emil")


NO_NOISE: Mapping[str, Any] = MappingProxyType({})
SHARED: Mapping[str, Any] = MappingProxyType(
    {"mode": "central-dp", "clip": 0.1, "noise_multiplier": 1.0, "delta": 1e-3, "noise": "seeded"}
)
"""Keys of [privacy] with noise in shares, which everybody can compute."""
FRESH = MappingProxyType({**SHARED, "noise": "os"})
"""With noise that nobody can."""


def cards(names: Sequence[str] = NAMES) -> dict[str, bytes]:
    """The public keys of these sites."""
    return {name: key_of(name).public_key().public_bytes_raw() for name in names}


def configured(name: str, secagg: str, noise: Mapping[str, Any] = NO_NOISE, **server: Any) -> RunConfig:
    """A run of four short rounds. `noise`: keys of its [privacy] besides."""
    wide = {"range": 4.0} if name == "ferret" else {}
    tables: dict[str, Any] = {
        "strategy": {"name": name, **OPTIONS.get(name, {})},
        "local": {"steps": 3, "learning_rate": 0.05},
        "server": {"rounds": 4, "seed": testing.SEED, **server},
        "clients": {"rank": 2},
        "privacy": {"secagg": secagg, **wide, **noise},
    }
    return run_file.from_dict(tables)


class SummedSite(Site):
    """A site with the others' cards on its disk."""

    cards: Mapping[str, bytes] = cards()
    deployed = True

    def _join(self, job: Job) -> Client:
        recipe, site = strategies.of(self.config), self
        toy, integers = testing.toy(recipe), integers_of(recipe)

        class Counted(ToyClient):
            index = self.index

            def train(self, turn: Turn) -> Update:
                site.trained += 1
                return super().train(turn)

        rows: list[Any] = [None] * 10 * (self.index + 1)
        base, kept, secure = ToyBase(), Kept(self.folder / "kept"), None
        if integers is not None and self.config.privacy.secagg == "on":
            secure = SecureSums(self.name, key_of(self.name), self.cards, self.folder, integers)
        own = OwnPrivacy()
        if self.config.privacy.on or self.config.privacy.evaluate != "none":
            own = OwnPrivacy(Ledger(self.folder), self.folder / "kept" / job.run, deployed=self.deployed)
        return Counted(
            self.name, rows, rows[:1], base, toy.handle, recipe, self.config, kept=kept, privacy=own, secure=secure
        )  # type: ignore[arg-type]


def sites_of(folder: Path, config: RunConfig, names: Sequence[str] = NAMES) -> dict[str, Site]:
    """The sites of a run, on the disks that are there."""
    sites: dict[str, Site] = {}
    for i, name in enumerate(names):
        sites[name] = site = SummedSite(name, i, folder / "sites" / name, config)
        site.cards = cards(names)
    return sites


class Summed:
    """One run in a folder; another one in the same folder is a restart of the server."""

    def __init__(
        self,
        folder: Path,
        secagg: str = "on",
        name: str = "fedit",
        *,
        names: Sequence[str] = NAMES,
        sites: Mapping[str, Site] | None = None,
        link: Callable[[Mapping[str, Site]], Link] = Direct,
        noise: Mapping[str, Any] = NO_NOISE,
        **server: Any,
    ) -> None:
        """`names`: of the sites, whose own files go on where these are given. `link`: made of the sites."""
        self.names, self.config = names, configured(name, secagg, noise, **server)
        recipe = strategies.of(self.config)
        toy = testing.toy(recipe, len(names))
        self.sites = sites or sites_of(folder, self.config, names)
        self.store = Store(folder / "state")
        found = self.store.latest()
        self.metrics = MetricsFile(folder / "metrics.jsonl", found[0].version if found else -1)
        self.job = Job(testing.RUN, testing.SEED, ToyBase().digest, told(self.config))
        self.link = link(self.sites)
        clock = Clock()
        post = SealedPost(self.link, roster(names), SERVER_KEY, testing.RUN, clock=clock)
        masked = guards.masked_of(self.config, recipe, folder / "state", lambda: cards(names))
        guard = guards.guard_of(self.config, recipe, self.store, None, masked)  # type: ignore[arg-type]
        self.federation = Federation(
            post, recipe, toy.layout, self.config, self.job, self.store, clock=clock, guard=guard, deployed=True
        )
        self.loop = Loop(self.federation, self.metrics, masked=masked)

    def run(self) -> State:
        """Carry the run to its end."""
        return self.loop.run(self.names)

    def simulated(self) -> State:
        """The final state of the same clients in one process, as a simulation runs them."""
        for site in self.sites.values():
            site.deployed = False  # type: ignore[attr-defined]
        clients = {name: site._join(self.job) for name, site in self.sites.items()}
        clients = {name: replace(c) for name, c in clients.items()}
        self.federation.post = LocalPost({name: client.answer for name, client in clients.items()})
        self.federation.deployed = False
        return self.run()
