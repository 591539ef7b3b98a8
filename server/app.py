"""`fedft server`: one run of a deployment, from its run file, keys and folder; starting again resumes the run.

    sites  <~ TLS ~>  this process: link, post, loop, store          sites  <~ TLS ~>  somebody's SuperLink  <~~>  us

All that must survive is in the run folder. Links keep messages in memory only: what was on its way when one was lost is
sent again.
"""

import json
import logging
import secrets
import ssl
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft import durable
from fedft.carriers.interface import Link
from fedft.carriers.stream.link import StreamLink
from fedft.config import RunConfig
from fedft.errors import ConfigError, FedftError, StateDamaged
from fedft.models import resident
from fedft.reports.observers import Audience, Observer, Observers
from fedft.security import new_keys, private_keys
from fedft.security import roster as keys
from fedft.security.site_table import Site
from fedft.server import message_sizes, open_run, run_outputs
from fedft.server.sealed_post import SealedPost
from fedft.server.traffic import Clock
from fedft.wire import messages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a server listens and which keys it holds. Either `listen` or `superlink`."""

    keys: Path
    """The server's key folder; the docstring of `fedft.security` says what is in it."""
    listen: tuple[str, int] | None = None
    """Host and port on which the sites reach us."""
    superlink: str = ""
    """host:port of a SuperLink that somebody else runs."""
    ca: Path | None = None
    """PEM file of the authority that signed that SuperLink's certificate; None: ca.pem of the key folder."""


def serve(
    config: RunConfig,
    place: Place,
    folder: Path,
    *,
    lift: Collection[str] = (),
    observe: Observers = (),
) -> dict[str, Any]:
    """Coordinate the run to its end; returns its summary.

    Args:
        config: the run file; `[server] mode` and where the data lies do not matter here.
        place: keys and addresses.
        folder: run folder; one that holds this run is resumed.
        lift: sites whose quarantine ends now.
        observe: who hears what happens, one or several; one that fails is told once and does not end the run.
    Raises:
        ConfigError, DataError, KeyFault: a mistake of the operator's, before any work.
        RunPaused: the run stopped where it can go on.
    """
    office = Office.at(place, lift)
    return coordinate(config, office, folder, partial(link_of, office), lift=lift, observe=observe)


@dataclass(frozen=True)
class Office:
    """What the runs of one server share: its keys, and the sites."""

    place: Place
    roster: "_Roster"
    key: Ed25519PrivateKey
    """Signs all letters."""

    @classmethod
    def at(cls, place: Place, lift: Collection[str] = ()) -> Self:
        """The office of a key folder. Raises ConfigError and KeyFault for what is wrong with the server's own files."""
        office = cls(place, _Roster(place.keys / "roster.toml"), private_keys.load_signing(place.keys / "signing.key"))
        _taking_part(office.roster, place, lift)
        return office


def coordinate(
    config: RunConfig,
    office: Office,
    folder: Path,
    link_of: Callable[[int], Link],
    *,
    lift: Collection[str] = (),
    observe: Observers = (),
    clock: Clock = time,
) -> dict[str, Any]:
    """Coordinate a run of the office to its end, as `serve` does; returns its summary.

    Args:
        config, folder, lift, observe: as there.
        office: keys and roster.
        link_of: given the longest answer of the run in bytes, the way to the sites, which is closed at the end.
        clock: by which the run waits for answers.
    """
    roster = office.roster
    sites = [site for site in _taking_part(roster, office.place, lift) if site in roster.nodes()]
    audit = Audit(folder / "audit.jsonl", Audience(observe))
    resume = (folder / "config.toml").exists()
    with open_run.opened(config, folder, resume=resume, observe=audit, deployed=True) as held:
        salt = map(_salt, [folder / "state" / "salt"])  # drawn when it is read: an attempt that ends before leaves none
        here = resident.load(held.config, held.recipe)
        message_sizes.check_sizes(held.config, held.recipe, here.layout, len(sites))
        run = held.begin(here, salt)
        audit.path.touch()
        most = config.limits.max_bytes or messages.MAX_MESSAGE_BYTES
        link = link_of(most)
        try:
            post = SealedPost(link, roster, office.key, run.job.run, audit, clock)
            caps = {name: m.max_examples for name, m in roster.members.items()}
            state = run.loop(post, caps=caps, lift=lift, clock=clock).run(sites)
        finally:
            link.close()
        absent = run_outputs.never_took_part(sites, run.metrics.lines)
        for site, why in absent.items():
            log.warning("no update of %s counted in the whole run: %s", site, why)
        return run.finish(state, len(sites), {"never_took_part": absent})


def _taking_part(roster: "_Roster", place: Place, lift: Collection[str]) -> list[str]:
    """The sites that are not revoked. Raises ConfigError and KeyFault for what is wrong with the server's own files."""
    if place.listen is not None:
        private_keys.load_ecdsa(place.keys / "server.key")
        for fault in new_keys.certificate_facts(place.keys / "server.pem").faults():
            raise ConfigError(fault)
    sites = [name for name, member in roster.members.items() if member.state() != "revoked"]
    if not sites:
        raise ConfigError(f"{place.keys / 'roster.toml'}: no site is enrolled; `fedft keys enrol` takes a site's card")
    if unknown := set(lift) - set(roster.members):
        raise ConfigError(f"--lift {min(unknown)}: no such site in {place.keys / 'roster.toml'}")
    return sites


class _Roster:
    """The roster's file, read again when it changes: the revoked are out at once, the new are in at the next start.

    Any thread may ask.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._read_at = path, (0, 0)
        self._lock = threading.Lock()
        self._roster = keys.load_roster(path)
        self._nodes = {m.name: m.node for m in self.members.values() if m.state() != "revoked"}

    @property
    def members(self) -> Mapping[str, Site]:
        return self._roster.members

    def key_of(self, name: str) -> Ed25519PublicKey:
        self._reload()
        return self._roster.key_of(name)

    def nodes(self) -> Mapping[str, bytes]:
        """The public node key of each site that may come."""
        self._reload()
        return self._nodes

    def _reload(self) -> None:
        with self._lock, suppress(OSError):
            found = self._path.stat()
            if (stamp := (found.st_mtime_ns, found.st_size)) == self._read_at:
                return
            self._read_at = stamp
            try:
                self._roster = keys.load_roster(self._path)
            except FedftError as e:
                log.error("%s; going on with the roster as it was", e)
            gone = [n for n in self._nodes if n not in self.members or self.members[n].state() == "revoked"]
            for name in gone:
                log.warning("%s is revoked", name)
            if gone:
                self._nodes = {name: key for name, key in self._nodes.items() if name not in gone}


def _salt(path: Path) -> bytes:
    """What tells this run from another one of the same config: drawn once, kept with the state."""
    if (salt := durable.verified(path)) is None:
        if path.exists():
            raise StateDamaged(f"{path}: cannot be read or was altered; without it the run cannot go on")
        salt = secrets.token_bytes(16)
        durable.commit(path, salt)
    return salt


@dataclass
class Audit:
    """Passes events on and writes a line for every refusal: who, why, how large, digest; never what was in it."""

    path: Path
    observe: Observer
    _round: int = -1

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Take one event of the run; a refusal is appended to the file before it is passed on, and not fsynced."""
        if kind == "round":
            self._round = info["round"]
        if kind == "refused":
            kept = {k: info[k] for k in ("code", "size", "sha256", "proven")}
            line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "round": self._round, **kept}
            with suppress(OSError), open(self.path, "a", encoding="utf-8") as f:  # a full disk is told elsewhere
                f.write(json.dumps({**line, "site": info["client"]}, sort_keys=True) + "\n")
        self.observe(kind, info)


def link_of(office: Office, most: int) -> Link:
    """The way to the sites, which listens already where it is ours. Raises ConfigError if it cannot.

    `most`: bytes of the longest answer.
    """
    place, roster = office.place, office.roster
    if place.listen is not None:
        own = StreamLink(*place.listen, place.keys / "server.pem", place.keys / "server.key", roster.nodes, most)
        own.start()
        log.info("listening on %s:%d", own.host, own.port)
        return own
    path = place.ca or place.keys / "ca.pem"
    try:
        ca = path.read_bytes()
        ssl.create_default_context(cadata=ca.decode("ascii"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path}: not a certificate in PEM: {e}") from e
    from fedft.carriers.flower.link import FlowerLink

    return FlowerLink(place.superlink, ca, roster.nodes)
