"""`fedft client`: one site, until it is told to stop. Base model and data stay loaded, several runs may share them.

main thread     the connection to the server                               (Node)
message thread  takes messages, answers STATUS at once                     (Responder.take)
worker thread   the one request at hand, of whichever run: joins a run, trains, evaluates    (Worker)
"""

import logging
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import allowed_code, durable, strategies
from fedft.carriers.stream.pace import MBIT
from fedft.carriers.stream.site_node import Node
from fedft.client import (
    allowed_jobs,
    companions,
    contact,
    device_lock,
    memory_limit,
    own_privacy,
    own_profile,
    secure_sums,
    work_limit,
)
from fedft.client.companions import Companions, Follower
from fedft.client.disk import SiteDisk
from fedft.client.held_letters import Door, HeldLetters
from fedft.client.one_worker import Worker
from fedft.client.own_rows import OwnRows
from fedft.client.private_state import Kept
from fedft.client.requests import Responder
from fedft.client.resident_models import ResidentModels
from fedft.client.server_trust import ServerTrust
from fedft.client.site_settings import SiteConfig
from fedft.client.train import Client
from fedft.errors import ConfigError, DataError, PlanRefused
from fedft.security import private_keys
from fedft.update import Job

log = logging.getLogger(__name__)


def attend_all(
    sites: Sequence[SiteConfig], stop: threading.Event, superlink: str = "", files: Sequence[Path] = ()
) -> None:
    """Serve sites, each of another server, until `stop` is set: a connection for each, and one worker for all.

    `files` are the site files, as commands that the log proposes name them. Errors as of `attend`; also ConfigError for
    two that are the same site.
    """
    for n, site in enumerate(sites):
        for other in sites[:n]:
            if site.site.state == other.site.state:
                raise ConfigError(f"[site] state = {site.site.state!r} is in two site files; each needs its own folder")
            if (site.site.name, site.server.address) == (other.site.name, other.server.address):
                raise ConfigError(f"site {site.site.name!r} of server {site.server.address} is in two site files")
    named = [*files] or [Path("site.toml")] * len(sites)
    if (count := companions.launched()) > 1:
        if len(sites) > 1:
            raise ConfigError(f"WORLD_SIZE = {count}: a launcher's processes serve one site; give its site file alone")
        site = companions.on_own_device(sites[0])
        here = Companions.joined(site.model.device)
        return accompany(site, here) if here.rank else attend(site, stop, superlink, named[0], among=here)
    if len(sites) == 1:
        return attend(sites[0], stop, superlink, named[0])
    if superlink:
        raise ConfigError("--superlink is of one server; give its site file alone, and a process to each other one")
    worker, failed = Worker(max(site.local.max_models for site in sites)), list[Exception]()

    def serve(site: SiteConfig, file: Path) -> None:
        try:
            attend(site, stop, file=file, worker=worker)
        except Exception as e:
            failed.append(e)
            stop.set()

    threads = [
        threading.Thread(target=serve, args=of, name=f"site {of[0].site.name}")
        for of in list(zip(sites, named, strict=True))[1:]
    ]
    for thread in threads:
        thread.start()
    worker.start(stop)
    serve(sites[0], named[0])
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def attend(
    site: SiteConfig,
    stop: threading.Event,
    superlink: str = "",
    file: Path = Path("site.toml"),
    worker: Worker | None = None,
    among: Companions | None = None,
) -> None:
    """Serve the site until `stop` is set.

    `among` are the processes that share its local steps, of which this is the first; None: there are no others.

    `worker` carries out the requests, with those of other sites; None: one of this site's own.

    `superlink`, host:port, is where Flower's SuperLink carries the messages, in place of the server's own address.
    `file` is the site file, as commands that the log proposes name it.
    Raises ConfigError or KeyFault for what is wrong with the site's own files; all else is retried and logged.
    """
    own, state = Path(site.keys.folder), Path(site.site.state)
    if superlink and site.site.max_mbit_s is not None:
        raise ConfigError("[site] max_mbit_s is for our own carrier; with --superlink leave it out, and bound the "
                          "rate in the proxy or the machine's network")  # fmt: skip
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"[site] state = {str(state)!r}: cannot be made: {e.strerror}") from e
    signing, node = private_keys.load_signing(own / "signing.key"), own / "node.key"
    trust = ServerTrust(Path(site.server.key), Path(site.server.ca), state)
    allowed_code.allow(site.own_code)
    with durable.alone(state / "lock", f"[site] state = {str(state)!r}: another process is serving this site"):
        disk = SiteDisk(state)  # not before: the process that has the lock may still add to the record
        allowed = partial(allowed_jobs.check_plan, policy=site.policy)
        longest = allowed_jobs.longest_message(site.policy)
        common = worker or Worker(site.local.max_models)
        joiner = Joiner(site, disk, common.models, among)
        held = HeldLetters(Door(site, file).closed)
        responder = Responder(site.site.name, signing, trust.key, disk, joiner, allowed, held, requests=common.requests)
        joiner.let_go, responder.runs.told_apart = responder.runs.let_go, worker is not None
        if lock := site.local.device_lock:
            device_lock.check(lock)
            responder.device = partial(device_lock.held, lock)
        if worker is None:
            common.start(stop)
        log.info("site %s, server %s", site.site.name, superlink or site.server.address)
        try:
            way: Any = (
                _superlink(superlink, trust.ca, node, longest)
                if superlink
                else _own(site, trust.ca, node, longest, responder)
            )
        except ConfigError as e:
            raise ConfigError(f"{e}; [server] ca = {site.server.ca!r} is to be the server's ca.pem") from e

        def go_over(key: Ed25519PublicKey, authority: bytes) -> None:
            responder.server = key
            if not superlink:  # there, from the next start on
                way.trust(authority)

        threading.Thread(target=contact.keep, args=(state, way.connected, stop), name="contact", daemon=True).start()
        way.run(lambda kind, payload, reply: responder.take(trust.message(payload, go_over), reply), stop)


def accompany(site: SiteConfig, here: Companions) -> None:
    """Take part in the local steps of the site's first process until that is gone; ConfigError as of `attend`."""
    allowed_code.allow(site.own_code)
    log.info("site %s: process %d of %d, for local steps", site.site.name, here.rank + 1, here.count)
    with tempfile.TemporaryDirectory(prefix="fedft-companion-") as folder:  # nothing that it keeps counts
        joiner = Joiner(site, SiteDisk(Path(folder)), ResidentModels(site.local.max_models))
        follower = Follower(here, joiner)
        joiner.let_go = follower.let_go
        follower.follow()


def _own(site: SiteConfig, ca: bytes, key: Path, max_bytes: int, responder: Responder) -> Node:
    """Our own node, which tells the responder what is on its way."""
    rate = site.site.max_mbit_s
    bytes_s = None if rate is None else rate * MBIT
    if rate is not None:
        log.info("at most %g Mbit/s each way", rate)
    found = Node(site.server.address, ca, key, max_bytes=max_bytes, bytes_s=bytes_s)
    responder.receiving = found.receiving
    return found


def _superlink(address: str, ca: bytes, key: Path, max_bytes: int) -> Any:
    """Flower's node, in place of our own."""
    from fedft.carriers.flower.site_node import Node as FlowerNode

    return FlowerNode(address, ca, private_keys.load_ecdsa(key), max_bytes=max_bytes)


@dataclass
class Joiner:
    """Makes a job's client under the site's policy, on a base model that stays loaded while it is used."""

    site: SiteConfig
    disk: SiteDisk
    models: ResidentModels
    among: Companions | None = None
    """The processes that share the clients' local steps, of which this is the first; None: there are no others."""
    let_go: Callable[[str], None] = lambda run: None
    """Called with a run whose client is to be forgotten, so that its model can be unloaded."""

    def __call__(self, job: Job) -> Client:
        """The client that takes part in `job`.

        Raises PlanRefused for what the policy does not allow or the site does not have.
        """
        config = allowed_jobs.run_config(job, self.site)
        try:
            recipe = strategies.of(config)
            secure = secure_sums.of_site(self.site, config, recipe)
            parts = (rows := OwnRows(self.site, config, job.run)).read()
            user = (self.site.site.state, job.run)
            here, turn = self.models.of(config, recipe, user, lambda: self.let_go(job.run))
            train, test = rows.encoded(parts, here.base)
        except (ConfigError, DataError) as e:
            log.error("run %s: %s", job.run, e)  # it may quote a record: for this site's operator only
            raise PlanRefused("site_unfit", "model or data of this site do not fit the job; its log says why") from None
        log.info("run %s: %s, %d rows to train on, %d held out", job.run, recipe.name, len(train), len(test))
        own, name = self.disk.kept(job.run), self.site.site.name
        privacy = own_privacy.of_site(self.site, self.disk.folder, own)
        policy = self.site.policy
        memory = memory_limit.check_of(policy, config, recipe, here, (train, test))
        limits = (work_limit.check_of(policy, config), memory)
        client = Client(
            name, train, test, here.base, here.handle, recipe, config, kept=Kept(own), privacy=privacy, ready=turn,
            rows=rows, profile=own_profile.of(self.site), tells="speed" in self.site.profile.share, limits=limits,
            secure=secure,
        )  # fmt: skip
        return client if self.among is None else companions.leading(client, job, self.among)
