"""Requests that wait at the site: for its operator's word on the run, or until its hours begin.

    held.check(about, job)    raises Waits where the request has to wait; the server hears why, as PROGRESS
    held.doing(about)         why it waits still; "" once it need not: the server then sends it again

Nothing of a request is kept while it waits, and nothing is loaded for it. To wait is no refusal: a round closes at
quorum or deadline without the site, and it counts towards no quarantine.
"""

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedft.client import allowed_jobs, open_hours
from fedft.client.known_runs import KnownRuns, digest_of
from fedft.client.site_settings import SiteConfig
from fedft.errors import FedftError, PlanRefused
from fedft.security.sealed import About
from fedft.update import Job

log = logging.getLogger(__name__)

MOST = 64  # runs, and requests, that are remembered; one that is forgotten is sent again, and waits anew
APPROVAL = "waiting for approval"
OUTSIDE = "outside its hours until"


class Waits(Exception):
    """A request has to wait; the text says what for, as the server hears it."""


@dataclass
class HeldLetters:
    """The requests that wait. `check` is called by one thread, `doing` by any."""

    closed: Callable[[Job], str] = lambda job: ""
    """Why requests of a job's run have to wait; "" if they need not. Raises PlanRefused where they are in vain."""
    _jobs: dict[str, Job] = field(default_factory=dict)
    """By run, as it was asked for last."""
    _held: dict[bytes, Job] = field(default_factory=dict)
    """By the digest that names a request."""

    def check(self, about: About, job: Job | None = None) -> None:
        """Return None if a request is to be dealt with now, or belongs to a run that was not asked for yet.

        `job`: what the request asks, where it is a job. Raises Waits, and PlanRefused where the request is in vain.
        """
        self._held.pop(about.plan, None)
        if job is not None and job.run == about.run:
            _remember(self._jobs, job.run, job)
        job = self._jobs.get(about.run)
        if job is not None and (why := self.closed(job)):
            _remember(self._held, about.plan, job)
            raise Waits(why)

    def doing(self, about: About) -> str:
        """Why a request waits still; "" for one that does not, or no longer."""
        job = self._held.get(about.plan)
        if job is None:
            return ""
        try:
            why = self.closed(job)
        except FedftError:
            why = ""  # it is sent again, and refused then
        if not why:
            self._held.pop(about.plan, None)
        return why


def _remember(found: dict[Any, Job], key: Any, job: Job) -> None:
    """Enter a job as the newest; the oldest ones above MOST go."""
    found.pop(key, None)
    found[key] = job
    for old in list(found)[:-MOST]:
        found.pop(old, None)


@dataclass
class Door:
    """Decides for a site which requests wait: by `[policy] approve`, then by `[site] hours`.

    What its policy forbids is refused at once, at any hour. A request that was begun within the hours is finished.
    """

    site: SiteConfig
    file: Path
    """The site file, as the operator names it in a command."""
    clock: Callable[[], float] = time.time
    """Gives seconds since 1970."""
    _looked: dict[str, Job] = field(default_factory=dict)
    """By run, as the policy was asked about it last."""
    _told: dict[str, Job] = field(default_factory=dict)
    """By run, of those whose command was logged."""
    _shut: str = ""
    """Until when the site is closed, as it was logged last."""

    def __post_init__(self) -> None:
        self._known = KnownRuns(Path(self.site.site.state), self.clock)
        self._hours = open_hours.parsed(self.site.site.hours) if self.site.site.hours is not None else None
        if self._hours is not None:
            log.info("hours: %s", self._hours.said(self.clock()))

    def closed(self, job: Job) -> str:
        """Why requests of this run wait; "" if they need not. A run that was not asked for before is noted, durably.

        Raises PlanRefused for what the policy forbids, and `not_approved` where the operator has refused the run.
        """
        if job != self._looked.get(job.run):
            allowed_jobs.run_config(job, self.site)
            self._known.note(job)
            _remember(self._looked, job.run, job)
        decision = self._known.decision(job)
        if decision == "refused":
            raise PlanRefused("not_approved", "this site's operator has refused the run")
        if decision != "approved" and self.site.policy.approve == "ask":
            self._tell_how(job)
            return APPROVAL
        until = self._hours.closed(self.clock()) if self._hours is not None else ""
        if until and until != self._shut:
            log.info("outside the hours until %s: what the server asks for waits", until)
        self._shut = until
        return f"{OUTSIDE} {until}" if until else ""

    def _tell_how(self, job: Job) -> None:
        """Log what is to be typed, once for each job."""
        if job != self._told.get(job.run):
            _remember(self._told, job.run, job)
            command = f"fedft site approve {quoted(self.file)} {job.run} --job {digest_of(job)[:12]}"
            log.warning("run %s waits for approval: `fedft site runs %s` shows what it asks; to take part: %s; "
                        "to refuse it: the same with --refuse", job.run, quoted(self.file), command)  # fmt: skip


def quoted(file: Path) -> str:
    """A file's name as a shell takes it."""
    return shlex.quote(str(file))
