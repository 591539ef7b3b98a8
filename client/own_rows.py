"""A site's own rows, as a run trains on them; read anew when their files hold something else.

    rows = OwnRows(site, config, run)
    parts = rows.read()                       (train, held out), before a model is loaded: mistakes are found soon
    train, test = rows.encoded(parts, base)
    rows.renewed(base)                        at each round: the same anew, or None while the files hold the same

A file is looked at by size, times and inode; only if one of these is another one is it hashed, and only if its bytes
are others are rows loaded. The base model and all that was learned stay.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedft import quickstart
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig
from fedft.data import client_datasets, records
from fedft.data.client_datasets import Rows
from fedft.data.examples import Example
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError, PlanRefused
from fedft.models.load import Base
from fedft.privacy.audit import canaries, planted_records
from fedft.privacy.tables import Audit

log = logging.getLogger(__name__)

SEED_BYTES = 6  # of canaries that nobody gives a seed: below 2^53, for JSON
TRIES = 3  # at files that change while they are read
Encoded = tuple[Sequence[Example], Sequence[Example]]
"""(to train on, held out), as the run's objective takes them."""
Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Name, size, inode and times of each file."""


@dataclass
class OwnRows:
    """The rows of one site in one run. Used by one thread."""

    site: SiteConfig
    config: RunConfig
    """The run as this site carries it out."""
    run: str
    """The run's identifier, for the log."""
    digest: str = ""
    """SHA-256 over the files that the present rows come from; "" before they are read, and where there are no files."""
    _stamp: Stamp = ()
    _counts: tuple[int, int] = (0, 0)
    """Rows to train on and held out, at present."""

    def read(self) -> tuple[Rows, Rows]:
        """(train, held out): the site's records as its files have them now, with the `digest` of just these.

        Raises DataError for files that are malformed, not there, or change all the time.
        """
        name, data = self.site.site.name, self.site.data
        for _ in range(TRIES):
            stamp = self._look()
            digest = _digest(stamp)
            found = client_datasets.of_site(self.config, name, data.client, data.value)
            if self._look() == stamp:
                self._stamp, self.digest = stamp, digest
                return self._with_canaries(*found)
        raise DataError(f"{client_datasets.said(data.train)}: changes while it is read")

    def _with_canaries(self, train: Rows, test: Rows) -> tuple[Rows, Rows]:
        """The rows, with what this site's own `[audit]` plants; its plan is kept in the state folder."""
        if not self.site.audit.canaries:
            return train, test
        said, state = asdict(self.site.audit), Path(self.site.site.state)
        if said["seed"] is None:
            known = canaries.read(state)
            said["seed"] = known.seed if known else int.from_bytes(os.urandom(SEED_BYTES), "little")
        plan = canaries.planned(Audit(**said), [self.site.site.name])
        canaries.keep(state, plan)
        return planted_records.planted_in({self.site.site.name: (train, test)}, self.config, plan)[self.site.site.name]

    def encoded(self, parts: tuple[Rows, Rows], base: Base) -> Encoded:
        """Rows as tokens of the base model; what was cut or left out is logged.

        Raises DataError, and ConfigError where a canary does not fit.
        """
        name, data = self.site.site.name, self.config.data
        if self.site.audit.canaries and (plan := canaries.read(Path(self.site.site.state))):
            planted_records.check_fits(self.config, base, plan)
        train, test = client_datasets.encode({name: parts}, self.config, base, counts := RowCounts())[name]
        for line in counts.lines(data.max_length, 1, data.max_prompt):
            log.warning("run %s: %s", self.run, line)
        self._counts = len(train), len(test)
        return train, test

    def renewed(self, base: Base) -> Encoded | None:
        """The rows anew if the files hold something else than those in use; None if they do not.

        Raises PlanRefused, `site_unfit`, while they cannot be read: the log says why, and the next round looks again.
        """
        before, digest, counts = self._stamp, self.digest, self._counts
        try:
            if (stamp := self._look()) == before:
                return None
            if _digest(stamp) == digest:
                self._stamp = stamp
                return None
            found = self.encoded(self.read(), base)
        except DataError as e:
            self._stamp, self.digest, self._counts = before, digest, counts
            log.error("run %s: the rows changed, and cannot be used: %s", self.run, e)
            raise PlanRefused("site_unfit", "rows of this site changed and cannot be used; its log says why") from None
        now = f"{self._counts[0]} to train on and {self._counts[1]} held out, before {counts[0]} and {counts[1]}"
        log.warning("run %s: the rows changed: %s; SHA-256 of their files %s", self.run, now, self.digest[:12])
        return found

    def _look(self) -> Stamp:
        """How the files are now. Raises DataError for one that is not there."""
        data = self.site.data
        files = [f for said in (data.train, data.test) if said is not None for f in _files(said)]
        try:
            found = [(f, f.stat()) for f in files]
        except OSError as e:
            raise DataError(f"{e.filename}: {e.strerror}") from e
        return tuple((str(f), s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns) for f, s in found)


def _files(said: str | list[str]) -> list[Path]:
    """The files behind a key of `[data]`; none of what is built in or lies in the hub's cache."""
    if isinstance(said, list):
        return [file for one in said for file in _files(one)]
    if said == quickstart.ROWS:
        return []
    saved = Path(said)
    return records.files_of(said) or (sorted(p for p in saved.rglob("*") if p.is_file()) if saved.is_dir() else [])


def _digest(stamp: Stamp) -> str:
    """SHA-256 of the SHA-256 of each file, in the order in which they are read; "" of none. Raises DataError."""
    whole = hashlib.sha256()
    for name, *_ in stamp:
        try:
            with open(name, "rb") as file:
                own = hashlib.file_digest(file, "sha256")
        except OSError as e:
            raise DataError(f"{name}: {e.strerror}") from e
        whole.update(own.digest())
    return whole.hexdigest() if stamp else ""
