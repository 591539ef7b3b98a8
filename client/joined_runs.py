"""The runs that a site takes part in at a time: the job of each, and its client while the run's model is loaded."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from fedft.client.disk import SiteDisk
from fedft.client.train import Client
from fedft.errors import FedftError, PlanRefused
from fedft.security.sealed import About
from fedft.update import RUNS_AT_ONCE, Job

log = logging.getLogger(__name__)


@dataclass
class JoinedRuns:
    """Clients by run, made when they are needed. Used by one thread."""

    join: Callable[[Job], Client]
    """Makes the client of a job, or raises PlanRefused; called again for a run that `let_go` was called for."""
    disk: SiteDisk
    """Has the state that the site holds in each run."""
    loading: Callable[[], None]
    """Called before a client is made, which can take long."""
    told_apart: bool = False
    """Whether the log names a run's identifier even if there is no other: other servers' runs are in the same log."""
    _jobs: dict[str, Job] = field(default_factory=dict)
    """By run, the one that was used last at the end."""
    _clients: dict[str, Client] = field(default_factory=dict)
    """By run, of those among `_jobs` whose model is loaded."""

    def take(self, job: Job) -> Client:
        """The client of a job that the server sends. What is here of another job of the same run is forgotten.

        Beyond RUNS_AT_ONCE the run that was used longest ago is left: its server is told so, and sends the job again.
        Raises PlanRefused.
        """
        if job != self._jobs.get(job.run):
            self._jobs.pop(job.run, None)
            self.let_go(job.run)
        client = self._client(job)
        for old in list(self._jobs)[:-RUNS_AT_ONCE]:
            del self._jobs[old]
            self.let_go(old)
        self.disk.keep_runs(self._jobs)
        return client

    def of(self, run: str) -> Client:
        """The client of a run whose job was taken. Raises PlanRefused, `wrong_run` for another run."""
        if (job := self._jobs.get(run)) is None:
            raise PlanRefused("wrong_run", f"plan of run {run}, enrolled in {', '.join(self._jobs) or 'none'}")
        return self._client(job)

    def loaded(self, run: str) -> Client | None:
        """The client of a run if there is one at present."""
        return self._clients.get(run)

    def round(self, about: About) -> str:
        """The round that a letter is about, for the log: with the run's identifier where there are several runs."""
        alone = len(self._jobs) < 2 and not self.told_apart
        return f"round {about.round}" if alone else f"run {about.run}, round {about.round}"

    def let_go(self, run: str) -> None:
        """Forget the client of a run, whose model is to make room for another: it is made anew when it is needed."""
        self.keep(run)
        self._clients.pop(run, None)

    def keep(self, run: str) -> None:
        """Put the state that the run's client holds on the disk; where that fails, the server sends it again."""
        client = self._clients.get(run)
        if client is not None and client.at is not None and client.memory.held is not None:
            try:
                self.disk.keep_state(run, client.memory.label, client.memory.held, client.at)
            except FedftError as e:
                log.warning("%s", e)

    def _client(self, job: Job) -> Client:
        """The client of a job, which holds the state that the site's disk has of the run."""
        client = self._clients.get(job.run)
        if client is None:
            self.loading()
            client = self.join(job)
            client.join(job)
            if (kept := self.disk.state(job.run)) is not None:
                label, held = kept
                client.memory.hold(held.version, label, held.tensors)
            self._clients[job.run] = client
        self._jobs.pop(job.run, None)
        self._jobs[job.run] = job
        return client
