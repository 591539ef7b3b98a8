"""`fedft client`: one site, until it is told to stop. Base model and data are loaded once and stay.

main thread     the connection to the server                               (Node)
message thread  takes messages, answers STATUS at once                     (Responder.take)
worker thread   the one request at hand: joins a run, trains, evaluates    (Responder.work)
"""

import logging
import threading
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedft import allowed_code, durable, strategies
from fedft.carriers.stream.pace import MBIT
from fedft.carriers.stream.site_node import Node
from fedft.client import allowed_jobs
from fedft.client.disk import SiteDisk
from fedft.client.held_letters import Door, HeldLetters
from fedft.client.own_rows import OwnRows
from fedft.client.private_state import Kept
from fedft.client.requests import Responder
from fedft.client.site_settings import SiteConfig
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import ConfigError, DataError, PlanRefused
from fedft.models import resident
from fedft.models.resident import Resident
from fedft.recipe import Recipe
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
    server, ca = private_keys.load_public(Path(site.server.key)), Path(site.server.ca).read_bytes()
    allowed_code.allow([*site.policy.strategies, *site.policy.metrics])  # listed by the operator's own hand
    disk = SiteDisk(state)
    with durable.alone(state / "lock", f"[site] state = {str(state)!r}: another process is serving this site"):
        allowed = partial(allowed_jobs.check_plan, policy=site.policy)
        longest = allowed_jobs.longest_message(site.policy)
        held = HeldLetters(Door(site, file).closed)
        responder = Responder(site.site.name, signing, server, disk, Joiner(site), allowed, held)
        threading.Thread(target=_work, args=(responder, stop), name="worker", daemon=True).start()
        log.info("site %s, server %s", site.site.name, superlink or site.server.address)
        try:
            way = _superlink(superlink, ca, node, longest) if superlink else _own(site, ca, node, longest, responder)
        except ConfigError as e:
            raise ConfigError(f"{e}; [server] ca = {site.server.ca!r} is to be the server's ca.pem") from e
        way.run(lambda kind, payload, reply: responder.take(payload, reply), stop)


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
    """Makes a job's client under the site's policy. What is loaded stays: a run like the last one starts at once."""

    site: SiteConfig
    _key: Any = None
    _resident: Resident | None = field(default=None)

    def __call__(self, job: Job) -> Client:
        """The client that takes part in `job`.

        Raises PlanRefused for what the policy does not allow or the site does not have.
        """
        config = allowed_jobs.run_config(job, self.site)
        try:
            recipe = strategies.of(config)
            parts = (rows := OwnRows(self.site, config, job.run)).read()
            here = self._loaded(config, recipe)
            train, test = rows.encoded(parts, here.base)
        except (ConfigError, DataError) as e:
            log.error("run %s: %s", job.run, e)  # it may quote a record: for this site's operator only
            raise PlanRefused("site_unfit", "model or data of this site do not fit the job; its log says why") from None
        log.info("run %s: %s, %d rows to train on, %d held out", job.run, recipe.name, len(train), len(test))
        kept = Kept(Path(self.site.site.state) / "kept")
        return Client(self.site.site.name, train, test, here.base, here.handle, recipe, config, kept=kept, rows=rows)

    def _loaded(self, config: RunConfig, recipe: Recipe) -> Resident:
        learned = (config.local.objective, config.local.packing)  # a handle has its objective
        key = (config.model, config.data.max_length, recipe.space, config.server.seed, learned)
        if self._resident is None or key != self._key:
            self._resident = None  # before the next one is loaded: there may be room for one only
            self._resident, self._key = resident.load(config, recipe), key
        return self._resident
