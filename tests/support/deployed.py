"""A deployment on the toy model in one process: the server's post, loop and store, sites with their own disks and keys.

The `Link` is what a test replaces; `Direct` delivers everything at once.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import run_file, strategies, testing
from fedft.carriers.interface import Link, Refused
from fedft.carriers.local import LocalPost
from fedft.client.disk import SiteDisk
from fedft.client.own_privacy import OwnPrivacy
from fedft.client.privacy_ledger import Ledger
from fedft.client.private_state import Kept
from fedft.client.requests import Responder
from fedft.client.train import Client
from fedft.config import LOCAL, Local, RunConfig
from fedft.contract import Batch, State, Turn
from fedft.errors import RejectedUpdate
from fedft.privacy import site_noise
from fedft.randomness import philox
from fedft.recipe import Recipe
from fedft.reports.metric_log import MetricsFile
from fedft.security.roster import Roster
from fedft.security.site_table import Site as RosterSite
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.job import told
from fedft.server.loop import Loop
from fedft.server.sealed_post import SealedPost
from fedft.update import Job, Update
from fedft.wire import versions

SITES = ("anna", "bert", "carl")
OPTIONS: dict[str, dict[str, Any]] = {"fedkseed": {"K": 64}, "ferret": {"K": 64}}
SERVER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))


def key_of(site: str) -> Ed25519PrivateKey:
    """The site's signing key, the same in every test."""
    return Ed25519PrivateKey.from_private_bytes(philox.derive(1, "key", site).to_bytes(8, "little") * 4)


class Killed(BaseException):
    """What SIGKILL is to a test: nothing catches it."""


def roster(sites: Sequence[str] = SITES) -> Roster:
    """All sites enrolled."""
    return Roster({s: RosterSite(s, key_of(s).public_key(), s.encode()) for s in sites})


class ToyClient(Client):
    """A client whose rows and model are the toy's; all else is what a site runs."""

    index = 0

    def _rows(self, local: Local) -> Any:
        client = self

        class Counted(testing.Ready):
            def batches(self, turn: Turn) -> Iterator[Batch]:
                for batch in super().batches(turn):
                    client.step += 1
                    yield batch

        return Counted(testing.data_of(self.index))

    def evaluate(self, turn: Turn) -> Update:
        """Loss on the client's own data."""
        loss = float(self.handle.loss(testing.data_of(self.index)).detach())
        return self._update(turn.plan, {}, 1, {"loss": loss, "accuracy": 0.0})


@dataclass(frozen=True)
class ToyBase:
    """As much of a base model as a client asks for."""

    digest: str = "d" * 64


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of a run on the toy, with clients' own noise where it is wanted."""
    recipe = strategies.make(config.strategy.name, config.strategy.options)
    return site_noise.noisy(recipe) if config.privacy.mode == "local-dp" else recipe


class Site:
    """A site's process and disk. `start` is a restart: what is not on the disk is gone."""

    def __init__(self, name: str, index: int, folder: Path, configured: RunConfig) -> None:
        self.name, self.index, self.folder, self.config = name, index, folder, configured
        self.trained = 0
        self.start()

    def start(self) -> None:
        """A fresh process on the disk that is there."""
        self.responder = Responder(
            self.name,
            key_of(self.name),
            SERVER_KEY.public_key(),
            SiteDisk(self.folder),
            self._join,
            lambda plan, size: None,
        )

    def _join(self, job: Job) -> Client:
        recipe = recipe_of(self.config)
        toy, site = testing.toy(recipe), self

        class Counted(ToyClient):
            index = self.index

            def train(self, turn: Turn) -> Update:
                site.trained += 1
                return super().train(turn)

        rows: list[Any] = [None] * 10 * (self.index + 1)
        base, own = ToyBase(), self.folder / "kept"
        privacy = OwnPrivacy(Ledger(self.folder), own, deployed=True)
        return Counted(
            self.name,
            rows,
            rows[:1],
            base,
            toy.handle,
            recipe,
            self.config,
            kept=Kept(own),
            privacy=privacy,  # type: ignore[arg-type]
        )


class SiteOfRuns(Site):
    """A site that takes part in several runs, each of a strategy of its own."""

    def __init__(self, name: str, index: int, folder: Path, configured: RunConfig, methods: Mapping[str, str]) -> None:
        """`methods`: the strategy's name by run."""
        self.methods = methods
        super().__init__(name, index, folder, configured)

    def _join(self, job: Job) -> Client:
        name = self.methods.get(job.run, "fedit")
        strategy = replace(self.config.strategy, name=name, options=OPTIONS.get(name, {}))
        recipe, config = strategies.make(name, OPTIONS.get(name, {})), replace(self.config, strategy=strategy)
        client = type("Own", (ToyClient,), {"index": self.index})
        rows: list[Any] = [None] * 10 * (self.index + 1)
        kept = Kept(self.responder.disk.kept(job.run))
        found: Client = client(
            self.name, rows, rows[:1], ToyBase(), testing.toy(recipe).handle, recipe, config, kept=kept
        )
        return found


@dataclass
class Direct:
    """A `Link` that delivers every message and works it off when its answer is pulled."""

    sites: Mapping[str, Site]
    _sent: dict[str, tuple[Site, bytes]] = field(default_factory=dict)
    _count: int = 0

    def nodes(self) -> Mapping[str, int]:
        """All of them."""
        return {name: i for i, name in enumerate(self.sites)}

    def speaks(self, node: int) -> int:
        """The newest."""
        return versions.newest()

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Keep it for `pull`."""
        self._count += 1
        self._sent[str(self._count)] = (list(self.sites.values())[node], b"".join(payload))
        return str(self._count)

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """Every answer, one after the other."""
        for mid in ids:
            if mid not in self._sent:
                continue
            site, payload = self._sent.pop(mid)
            for answer in self.answers(site, payload):
                yield mid, answer

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message."""
        said: list[bytes] = []
        site.responder.take(payload, said.append)
        while site.responder.work(0):
            pass
        return said

    def forget(self, ids: Collection[str]) -> None:
        """As if it had never been sent."""
        for mid in ids:
            self._sent.pop(mid, None)

    def close(self) -> None:
        """Nothing to leave."""


class Deployment:
    """One run in a folder; another one in the same folder is a restart of the server."""

    def __init__(
        self,
        folder: Path,
        name: str = "fedit",
        *,
        sites: Mapping[str, Site] | None = None,
        link: Link | None = None,
        names: Sequence[str] = SITES,
        federation: Mapping[str, Any] | None = None,
        post: Mapping[str, Any] | None = None,
        privacy: Mapping[str, Any] | None = None,
        **server: Any,
    ) -> None:
        tables: dict[str, Any] = {
            "strategy": {"name": name, **OPTIONS.get(name, {})},
            "local": {"steps": 3, "learning_rate": 0.05},
            "server": {"rounds": 4, "seed": testing.SEED, **server},
            "privacy": dict(privacy or {}),
        }
        toy = testing.toy(strategies.make(name, OPTIONS.get(name, {})))
        tables["clients"] = {"rank": list(toy.ranks)}
        self.config = run_file.from_dict(tables)
        recipe = recipe_of(self.config)
        self.sites = sites or {s: Site(s, i, folder / "sites" / s, self.config) for i, s in enumerate(names)}
        self.store = Store(folder / "state")
        found = self.store.latest()
        self.metrics = MetricsFile(folder / "metrics.jsonl", found[0].version if found else -1)
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        said = self.config.to_dict()
        agreed = {
            t: {k: v for k, v in said[t].items() if k not in LOCAL.get(t, ())} for t in ("strategy", "local", "codec")
        }
        if self.config.privacy.on:
            agreed["privacy"] = told(self.config)["privacy"]
        job = Job(testing.RUN, testing.SEED, ToyBase().digest, agreed)
        observe = lambda kind, info: self.events.append((kind, info))  # noqa: E731
        self.link = link or Direct(self.sites)
        self.post = SealedPost(self.link, roster(names), SERVER_KEY, testing.RUN, observe, **(post or {}))
        self.federation = Federation(
            self.post, recipe, toy.layout, self.config, job, self.store, observe, deployed=True, **(federation or {})
        )
        self.loop = Loop(self.federation, self.metrics)
        self.names, self.job = names, job

    def run(self) -> State:
        """Carry the run to its end."""
        return self.loop.run(self.names)

    def digest(self) -> str:
        """Of the final state."""
        return self.run().digest

    def simulated(self) -> str:
        """Digest of the final state of the same clients in one process, as a simulation runs them."""
        clients = {name: site._join(self.job) for name, site in self.sites.items()}
        post = LocalPost({name: client.answer for name, client in clients.items()})
        self.federation.post, self.federation.deployed = post, False
        return self.digest()


def kill_at(run: "Deployment", at: str, number: int) -> None:
    """Have the run's server die behind the first event of this kind of this round, or of the state of this version."""
    told = run.federation.observe

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        told(kind, info)
        if kind == at and info.get("version", info.get("round")) == number:
            raise Killed

    run.federation.observe = observe
