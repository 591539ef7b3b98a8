"""What an operator decides between two rounds: whether another one begins, and whose quarantine has ended."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fedft.reports.metric_log import Line
from fedft.reports.observers import Observer
from fedft.server import budget
from fedft.server.federation import Federation
from fedft.server.sending import POLL_S, SAY_S

log = logging.getLogger(__name__)


def over(run: Federation, lines: Sequence[Line]) -> bool:
    """Whether the run with these lines of metrics.jsonl is at its end: its rounds, its budget, or its epsilon."""
    ended = budget.over(run.config, lines)
    return ended or (run.private is not None and not run.private.schedule.affords(lines[-1]["version"]))


def goes_on(run: Federation, lines: Sequence[Line], version: int) -> bool:
    """Whether the round that leads on from `version` begins; waits while the run is paused.

    A round that was begun before a restart goes on though the run is paused. `lines` are those of metrics.jsonl.
    """
    told, steering = -math.inf, run.steering
    while not over(run, lines):
        if steering is None or steering.begins(version):
            return True
        if (paused := steering.paused) and run.clock.monotonic() >= told + SAY_S:
            told = run.clock.monotonic()
            said = "paused before round %d since %s, by %s; `fedft admin RUN resume` goes on"
            log.warning(said, version, paused["since"], paused["by"])
        run.clock.sleep(POLL_S[1])
        run.look(now=True)
    return False


def committed(run: Federation, version: int, notes: Mapping[str, Any]) -> None:
    """The round is over that led to `version` and these notes: what was changed for the next one may hold."""
    run.number, run.barred = version, notes["barred"]
    if run.private is not None:
        run.private.stands(version, notes["record"])
    if run.steering is not None:
        run.steering.committed(version)
    run.look(now=True)


def lifted(run: Federation, version: int, notes: dict[str, Any]) -> dict[str, Any]:
    """The notes that stand with the state of `version`, without the quarantines that have ended since."""
    ended = run.steering.lifted(version) & {*notes["barred"]} if run.steering is not None else set()
    return without(notes, ended, run.observe) if ended else notes


def without(notes: dict[str, Any], lifted: Collection[str], observe: Observer) -> dict[str, Any]:
    """Notes in which these clients are not quarantined, and have never been refused."""
    for client in sorted(lifted):
        observe("lifted", {"client": client})
    barred = [c for c in notes["barred"] if c not in lifted]
    return {**notes, "barred": barred, "refusals": [r for r in notes["refusals"] if r[1] not in lifted]}
