"""`fedft server`: one run of a deployment, from its run file, keys and folder; starting again resumes the run.

    sites  <~ TLS ~>  this process: link, post, loop, store          sites  <~ TLS ~>  somebody's SuperLink  <~~>  us

All that must survive is in the run folder. Links keep messages in memory only: what was on its way when one was lost is
sent again.
"""

import logging
import secrets
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedft import durable
from fedft.carriers.interface import Link
from fedft.carriers.stream.link import StreamLink
from fedft.config import RunConfig
from fedft.errors import ConfigError, StateDamaged
from fedft.models import resident
from fedft.privacy.audit import canaries, verdict
from fedft.reports import privacy_lines
from fedft.reports.observers import Audience, Observers
from fedft.reports.quantities import size
from fedft.security import new_keys, private_keys
from fedft.server import (
    admin,
    admin_socket,
    disk_need,
    foreseen_privacy,
    message_sizes,
    open_run,
    private_facts,
    run_outputs,
)
from fedft.server import audit as audits
from fedft.server.arrival_clock import ArrivalClock
from fedft.server.audit import Audit
from fedft.server.membership import Without
from fedft.server.roster_file import RosterFile
from fedft.server.sealed_post import SealedPost
from fedft.server.succession_link import announced, front
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
        config: the run file; `[server] workers` and where the data lies do not matter here.
        place: keys and addresses.
        folder: run folder; one that holds this run is resumed.
        lift: sites whose quarantine ends now.
        observe: who hears what happens, one or several; one that fails is told once and does not end the run.
    Raises:
        ConfigError, DataError, KeyFault: a mistake of the operator's, before any work.
        RunPaused: the run stopped where it can go on.
    """
    office, clock = Office.at(place, lift), ArrivalClock()
    if config.clients.devices is not None:
        log.warning(
            "[clients.devices] has no effect: they are virtual, of simulations; sites have devices of their own"
        )
    link = partial(link_of, office, came=clock.came)
    return coordinate(config, office, folder, link, lift=lift, observe=observe, clock=clock)


@dataclass(frozen=True)
class Office:
    """What the runs of one server share: its keys, and the sites."""

    place: Place
    roster: RosterFile
    key: Ed25519PrivateKey
    """Signs all letters."""
    front: bytes
    """Announces that key in front of them, where it took another's place; b"" for nothing."""

    @classmethod
    def at(cls, place: Place, lift: Collection[str] = ()) -> Self:
        """The office of a key folder. Raises ConfigError and KeyFault for what is wrong with the server's own files."""
        roster = RosterFile(place.keys / "roster.toml")
        key = private_keys.load_signing(place.keys / "signing.key")
        office = cls(place, roster, key, front(place.keys, key))
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
    sites = _taking_part(roster, office.place, lift)
    audit = Audit(folder / audits.FILE, Audience(observe))
    resume = (folder / "config.toml").exists()
    if config.audit.canaries:
        log.warning("[audit] canaries has no effect here: sites plant their own, in simulations clients do")
    verdict.check(config, canaries.read(folder), held_out=False)
    with open_run.opened(config, folder, resume=resume, observe=audit, deployed=True) as held:
        salt = map(_salt, [folder / "state" / "salt"])  # drawn when it is read: an attempt that ends before leaves none
        here = resident.load(held.config, held.recipe)
        message_sizes.check_sizes(held.config, held.recipe, here.layout, len(sites))
        need = disk_need.check(held.config, held.recipe, here.layout, len(sites), folder)
        log.info("the run will take about %s of disk", size(need.whole))
        foreseen = foreseen_privacy.of_run(held.config, held.recipe, here.layout, dict.fromkeys(sites))
        for line in privacy_lines.lines(foreseen):
            log.info("%s", line)
        run = held.begin(here, salt)
        audit.begin(run.job.run, held.version)
        most = config.limits.max_bytes or messages.MAX_MESSAGE_BYTES
        link = announced(link_of(most), office.front)
        try:
            heard = private_facts.quiet(audit, run.config.privacy)
            post = SealedPost(link, roster, office.key, run.job.run, heard, clock)
            roll = Without(roster, lambda: run.steering.removed)
            loop = run.loop(post, roll=roll, lift=lift, clock=clock, cards=roster.cards)
            register = office.place.keys / "roster.toml"
            acts = admin.Acts(loop.federation, run.steering, roster, register, folder, audit)
            with admin_socket.listening(folder, acts.answer):
                state = loop.run(sites)
        finally:
            link.close()
        members = loop.federation.membership.places
        absent = run_outputs.never_took_part(members, run.metrics.lines)
        for site, why in absent.items():
            log.warning("no update of %s counted in the whole run: %s", site, why)
        summary = run.finish(state, len(members), {"never_took_part": absent})
    verdict.raise_if_held(folder, summary)
    return summary


def _taking_part(roster: RosterFile, place: Place, lift: Collection[str]) -> list[str]:
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


def _salt(path: Path) -> bytes:
    """What tells this run from another one of the same config: drawn once, kept with the state."""
    if (salt := durable.verified(path)) is None:
        if path.exists():
            raise StateDamaged(f"{path}: cannot be read or was altered; without it the run cannot go on")
        salt = secrets.token_bytes(16)
        durable.commit(path, salt)
    return salt


def link_of(office: Office, most: int, came: Callable[[], None] = lambda: None) -> Link:
    """The way to the sites, which listens already where it is ours. Raises ConfigError if it cannot.

    `most`: bytes of the longest answer. `came`: called when an answer has come, where the way is ours.
    """
    place, roster = office.place, office.roster
    if place.listen is not None:
        own = StreamLink(*place.listen, place.keys / "server.pem", place.keys / "server.key", roster.nodes, most, came)
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
