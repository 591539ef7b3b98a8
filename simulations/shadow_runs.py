"""Runs like one that is audited, each on a half of all records drawn by the audit's seed: its shadows.

    found = measured(place, two, plan, rows, 8, print)         eight runs, in folders that are gone when they have ended

All records are in the draw: rows that the audited run was trained on, those that it held out, and its canaries, planted
or not, each with all its repeats. A shadow is the run's own: strategy, rounds, steps, noise and seed; without masks,
virtual devices, evaluations and an audit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fedft.client.own_privacy import OwnPrivacy
from fedft.client.private_state import Kept
from fedft.client.received_state import Memory
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.privacy.audit import findings, shadows
from fedft.privacy.audit.canaries import Plan
from fedft.privacy.audit.findings import Rows
from fedft.privacy.audit.planted_records import record_of
from fedft.privacy.audit.shadows import Tried
from fedft.privacy.audit.two_models import TwoModels
from fedft.privacy.tables import Audit
from fedft.server import open_run
from fedft.simulations import workplace as runs
from fedft.simulations.workplace import Workplace


@dataclass(frozen=True)
class Record:
    """One record of the draw."""

    client: str
    row: Any
    """Encoded."""
    tried: Tried

    @property
    def times(self) -> int:
        """How often it stands in its client's rows, if it does."""
        return self.tried.repeats or 1


def measured(
    place: Workplace, two: TwoModels, plan: Plan | None, rows: Rows, count: int, told: Callable[[str], None],
    ended: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What membership inference with so many shadow runs finds, see `shadows.measured`.

    Args:
        place: of the audited run; its model stands at that run's state again when this returns.
        two: its models.
        plan: of its canaries; None: there are none.
        rows: those of its clients without canaries.
        count: shadow runs.
        told: hears a line before each.
        ended: after how many rounds the audited run has ended; None: after all that its run file says.
    Raises:
        ConfigError: fewer runs than `shadows.FEWEST`, or no records of both kinds.
    """
    if count < shadows.FEWEST:
        raise ConfigError(f"--shadows {count}: wanted {shadows.FEWEST} or more, half of them with each record")
    records = _records(place, plan, rows)
    if len({r.tried.member for r in records}) < 2:
        raise ConfigError(
            "--shadows: every record was trained on; wanted held-out rows, or canaries that were left out"
        )
    inside = shadows.dealt(len(records), count, place.config.audit.seed)
    tried = _drawn(records, place.config)
    own = [records[n].row for n in tried]
    audited, found = two.losses(own), []
    try:
        for shadow in range(count):
            told(f"shadow run {shadow + 1} of {count}")
            within = [r for r, there in zip(records, inside[:, shadow].tolist(), strict=True) if there]
            _learn(place, within, ended)
            found.append(two.losses(own))
    finally:
        two.stand()
    return shadows.measured(
        [records[n].tried for n in tried], audited, torch.tensor(found, dtype=torch.float64).T, inside[tried]
    )


def _records(place: Workplace, plan: Plan | None, rows: Rows) -> list[Record]:
    """All records of the draw."""
    encode = place.handle.objective.encode

    def canary(c: Any) -> Any:
        return encode(record_of(c, c.secret, place.config), place.base, place.config, f"canary {c.number}")

    kinds: tuple[tuple[Mapping[str, Sequence[Any]], bool], ...] = ((rows.trained, True), (rows.held_out, False))
    found = [Record(client, row, Tried(member)) for of, member in kinds for client, own in of.items() for row in own]
    planted = plan.canaries if plan else ()
    return [*found, *(Record(c.client, canary(c), Tried(c.planted, c.repeats)) for c in planted)]


def _drawn(records: Sequence[Record], config: RunConfig) -> list[int]:
    """Numbers of the records that are tried: at most `findings.MOST_ROWS` rows of a kind, and all canaries."""
    numbers: dict[tuple[bool, bool], list[int]] = {}
    for n, r in enumerate(records):
        numbers.setdefault((bool(r.tried.repeats), r.tried.member), []).append(n)
    return sorted(n for (canary, _), own in numbers.items() for n in (own if canary else findings.drawn(own, config)))


def _learn(place: Workplace, records: Sequence[Record], ended: int | None) -> None:
    """Put the model at the end of a run on these records, of as many rounds as the audited one had."""
    c = place.config
    budget = None
    if ended is not None and ended < c.server.rounds:  # by its patience, say: rates go by all rounds all the same
        budget = f"steps={ended * c.local.steps}"
    config = replace(
        c,
        audit=Audit(),
        privacy=replace(c.privacy, secagg="off"),
        clients=replace(c.clients, devices=None),
        server=replace(c.server, patience=None, budget=budget),
        eval=replace(c.eval, prompts=[], best=None),
    )
    clients = {
        name: replace(
            client, config=config, train_rows=own, test_rows=[], memory=Memory(), kept=Kept(), privacy=OwnPrivacy(),
            secure=None,
        )
        for name, client in place.clients.items()
        if (own := [r.row for r in records if r.client == name for _ in range(r.times)])
    }  # fmt: skip
    here = replace(place, config=config)
    with TemporaryDirectory() as folder:
        run = open_run.fresh(config, place.recipe, place.here, Path(folder), runs.whose(clients))
        here.stand(run.loop(runs.local_post(clients)).run(clients))
