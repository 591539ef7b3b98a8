"""What a site file says of when, how fast and with whose word the site works; rows as those of `checks_machine.py`."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fedft.cli.checks_machine import OK, WARN, Finding

if TYPE_CHECKING:
    from fedft.client.site_settings import SiteConfig

SLOW_S = 600.0  # that a gibibyte takes: a model of that size would be most of a round
GIB = 2**30


def terms(site: "SiteConfig", now: float | None = None) -> Iterator[Finding]:
    """Hours, rate and approval, each as it is at present; `now`: seconds since 1970, None for this moment."""
    yield hours(site.site.hours, time.time() if now is None else now)
    yield rate(site.site.max_mbit_s)
    yield from approval(site)


def hours(said: str | None, now: float) -> Finding:
    """Whether the site works now, and when it does next."""
    from fedft.client import open_hours

    if said is None:
        return Finding("hours", OK, "the site works at all hours")
    return Finding("hours", OK, open_hours.parsed(said).said(now))


def rate(mbit_s: float | None) -> Finding:
    """How long a gibibyte takes at the site's own bound."""
    if mbit_s is None:
        return Finding("rate", OK, "not bounded")
    seconds = GIB * 8 / (mbit_s * 1_000_000)
    found = f"at most {mbit_s:g} Mbit/s each way: 100 MiB take {seconds / 10.24:.0f} s"
    if seconds > SLOW_S:
        return Finding("rate", WARN, found, "see that the server's [server] deadline_s leaves time for plan and answer")
    return Finding("rate", OK, found)


def approval(site: "SiteConfig") -> Iterator[Finding]:
    """Which runs wait for the operator's word."""
    from fedft.client.known_runs import KnownRuns

    known = KnownRuns(Path(site.site.state)).all()
    refused = sum(run.decision == "refused" for run in known)
    if site.policy.approve == "auto":
        said = "auto: a run that the policy allows is taken up at once"
        yield Finding("approval", OK, said + (f"; {refused} refused by hand" if refused else ""))
        return
    waits = [run.run for run in known if not run.decision]
    approved = len(known) - len(waits) - refused
    found = f"ask: {approved} runs approved, {refused} refused, {len(waits)} waiting"
    remedy = "`fedft site runs SITE.toml` shows what they ask; `fedft site approve SITE.toml RUN` lets one train"
    yield Finding("approval", WARN if waits else OK, found, remedy if waits else "")
