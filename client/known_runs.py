"""The runs that a site was asked to take part in, and what its operator said to them; durable in its state folder.

    runs/<run>.json             form, at, digest, job      what the server asks; written by `fedft client` alone
    runs/<run>.decision.json    form, at, digest, said     "approved" or "refused"; written by `fedft site` alone

A decision is about one job, by its digest: where the server asks for something else under the same name of a run, none
is made yet. Times are seconds since 1970, by this machine's clock.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fedft import check, durable
from fedft.errors import ConfigError
from fedft.update import Job

log = logging.getLogger(__name__)

FORM = 1
FOLDER = "runs"
MOST = 200  # runs without a decision that are remembered: a server cannot fill the disk with names
SAID = ("approved", "refused")
RUN = re.compile(r"([0-9a-f]{16})\.json")

Decision = Literal["approved", "refused", ""]
"""What the operator said; "": nothing yet."""


@dataclass(frozen=True)
class KnownRun:
    """A run as the server last asked for it."""

    job: Job
    at: float
    """When the site was first asked for this job."""
    decision: Decision = ""

    @property
    def run(self) -> str:
        """The run's identifier, 16 hexadecimal digits."""
        return self.job.run

    @property
    def digest(self) -> str:
        """SHA-256 of all that the job says, hexadecimal."""
        return digest_of(self.job)


def digest_of(job: Job) -> str:
    """SHA-256 of all that a job says, hexadecimal: equal for equal jobs, in whatever order the server wrote them."""
    return hashlib.sha256(json.dumps(asdict(job), sort_keys=True).encode()).hexdigest()


class KnownRuns:
    """The known runs in a site's state folder; the folder `runs` in it is made when the first one is noted.

    Any number of processes may read; each kind of file has one writer, and is replaced whole.
    """

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._folder, self._clock = state / FOLDER, clock

    def note(self, job: Job) -> None:
        """Remember, durably, what a server asks; nothing is written for a job that is known. Raises RunPaused.

        The oldest run without a decision is forgotten where there are more than MOST.
        """
        known = self._asked(job.run)
        if known is not None and known.job == job:
            return
        self._write(f"{job.run}.json", digest_of(job), job=asdict(job))
        undecided = sorted((r for r in self.all() if not r.decision), key=lambda r: r.at)
        for old in undecided[: max(0, len(undecided) - MOST)]:
            (self._folder / f"{old.run}.json").unlink(missing_ok=True)

    def decision(self, job: Job) -> Decision:
        """What the operator said to exactly this job."""
        said = self._read(f"{job.run}.decision.json")
        if said is None or said.get("digest") != digest_of(job) or said.get("said") not in SAID:
            return ""
        return "approved" if said["said"] == "approved" else "refused"

    def decide(self, known: KnownRun, said: Literal["approved", "refused"]) -> None:
        """Note durably what the operator says to a run as it is known. Raises RunPaused where the disk is full."""
        self._write(f"{known.run}.decision.json", known.digest, said=said)

    def all(self) -> list[KnownRun]:
        """Every known run, the one that was asked for first at the front."""
        names = [m[1] for p in self._folder.glob("*.json") if (m := RUN.fullmatch(p.name))]
        return sorted((r for n in names if (r := self._asked(n)) is not None), key=lambda r: (r.at, r.run))

    def find(self, run: str, digest: str = "") -> KnownRun:
        """The run whose identifier is, or begins with, `run`, and whose job's digest begins with `digest`.

        Raises ConfigError in one line: none or several begin like that, or the server asks for something else by now.
        """
        known = self.all()
        found = [r for r in known if run and r.run.startswith(run)]
        if len(found) != 1:
            there = check.few([r.run for r in known]) or "none"
            raise ConfigError(f"run {run!r:.40}: {len(found)} runs begin like that; known here: {there}")
        if not found[0].digest.startswith(digest):
            now = found[0].digest[:12]
            raise ConfigError(
                f"run {found[0].run}: its job is {now} now, not {digest!r:.80}; look at `fedft site runs`"
            )
        return found[0]

    def _asked(self, run: str) -> KnownRun | None:
        said = self._read(f"{run}.json")
        if said is None:
            return None
        try:
            job, at = Job(**said["job"]), float(said["at"])
            if job.run != run or digest_of(job) != said["digest"]:
                raise ValueError("it is not what was written")
        except (KeyError, TypeError, ValueError) as e:
            log.warning("%s: left out: %s", self._folder / f"{run}.json", e)
            return None
        return KnownRun(job, at, self.decision(job))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            said = json.loads((self._folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as e:
            log.warning("%s: cannot be read: %s", self._folder / name, e)
            return None
        return said if isinstance(said, dict) and said.get("form") == FORM else None

    def _write(self, name: str, digest: str, **more: Any) -> None:
        said = {"form": FORM, "at": self._clock(), "digest": digest, **more}
        durable.write(self._folder / name, json.dumps(said, sort_keys=True).encode() + b"\n", mode=0o600)
