"""`fedft client`: one site, until it is told to stop. Base model and data stay loaded, several runs may share them.

main thread     the connection to the server                               (Node)
message thread  takes messages, answers STATUS at once                     (Responder.take)
worker thread   the one request at hand, of whichever run: joins a run, trains, evaluates    (Responder.work)
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedft import allowed_code, durable, strategies
from fedft.carriers.stream.pace import MBIT
from fedft.carriers.stream.site_node import Node
from fedft.client import allowed_jobs, contact
from fedft.client.disk import SiteDisk
from fedft.client.held_letters import Door, HeldLetters
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


def attend(site: SiteConfig, stop: threading.Event, superlink: str = "", file: Path = Path("site.toml")) -> None:
    """Serve the site until `stop` is set.

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
    allowed_code.allow([*site.policy.strategies, *site.policy.metrics])  # listed by the operator's own hand
    disk = SiteDisk(state)
    with durable.alone(state / "lock", f"[site] state = {str(state)!r}: another process is serving this site"):
        allowed = partial(allowed_jobs.check_plan, policy=site.policy)
        longest = allowed_jobs.longest_message(site.policy)
        joiner = Joiner(site, disk, ResidentModels(site.local.max_models))
        held = HeldLetters(Door(site, file).closed)
        responder = Responder(site.site.name, signing, trust.key, disk, joiner, allowed, held)
        joiner.let_go = responder.runs.let_go
        threading.Thread(target=_work, args=(responder, stop), name="worker", daemon=True).start()
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


def _work(responder: Responder, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            responder.work(1.0)
        except Exception:  # an answer that could not be sent; the server asks again
            log.exception("the worker failed")


@dataclass
class Joiner:
    """Makes a job's client under the site's policy, on a base model that stays loaded while it is used."""

    site: SiteConfig
    disk: SiteDisk
    models: ResidentModels
    let_go: Callable[[str], None] = lambda run: None
    """Called with a run whose client is to be forgotten, so that its model can be unloaded."""

    def __call__(self, job: Job) -> Client:
        """The client that takes part in `job`.

        Raises PlanRefused for what the policy does not allow or the site does not have.
        """
        config = allowed_jobs.run_config(job, self.site)
        try:
            recipe = strategies.of(config)
            parts = (rows := OwnRows(self.site, config, job.run)).read()
            user = (self.site.site.state, job.run)
            here, turn = self.models.of(config, recipe, user, lambda: self.let_go(job.run))
            train, test = rows.encoded(parts, here.base)
        except (ConfigError, DataError) as e:
            log.error("run %s: %s", job.run, e)  # it may quote a record: for this site's operator only
            raise PlanRefused("site_unfit", "model or data of this site do not fit the job; its log says why") from None
        log.info("run %s: %s, %d rows to train on, %d held out", job.run, recipe.name, len(train), len(test))
        kept, name = Kept(self.disk.kept(job.run)), self.site.site.name
        return Client(name, train, test, here.base, here.handle, recipe, config, kept=kept, ready=turn, rows=rows)
