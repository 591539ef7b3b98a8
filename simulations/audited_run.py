"""What an outsider could take from the model of a run, measured on its folder; and the release of one held back."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fedft import durable, strategies
from fedft.errors import ConfigError
from fedft.models import resident
from fedft.privacy.audit import canaries, findings, gate, planted_records, verdict
from fedft.privacy.audit.canaries import Plan
from fedft.privacy.audit.contrasts import Wanted
from fedft.privacy.audit.findings import Findings, Rows
from fedft.privacy.audit.learning_copy import LearningCopy
from fedft.privacy.audit.two_models import TwoModels
from fedft.reports import metric_log, summary_file
from fedft.server import run_outputs
from fedft.simulations import shadow_runs, workplace
from fedft.simulations.workplace import Workplace

RANK = 8
"""Of the adapter in which a copy of the base learns what is generated."""
FACTS = ("strategy", "rounds", "state_digest")
"""Of the summary: which model it was."""


def audit_run(
    folder: Path,
    wanted: Wanted,
    *,
    iterative: bool = False,
    shadows: int = 0,
    told: Callable[[str], None] = lambda line: None,
) -> Findings:
    """Audit the newest state of the run in `folder`, on the rows of its clients where they are here.

    `audit.json` is written into the folder, without any text of a record.

    Args:
        folder: of the run.
        wanted: how much is generated.
        iterative: whether the base learns each text before the next is generated, for which it is loaded once more.
        shadows: runs like this one for membership inference, each as long as it; 0: none.
        told: hears a line before each of them.
    Raises ConfigError where there is no run that has ended, its plan is of another version, or shadow runs are wanted
    where its rows are not.
    """
    summary = summary_file.of_ended(folder)
    plan = canaries.read(folder)
    deployed = (folder / "state" / "salt").exists()
    if shadows and deployed:
        raise ConfigError(f"--shadows {shadows}: {folder} is of a deployment, its rows are at the sites; leave it out")
    place, state = workplace.reopen(folder, data=not deployed)
    two = TwoModels(place.handle, place.base, partial(place.stand, state), place.config.eval.batch_size)
    rows = rows_of(place, plan)
    wanted = replace(wanted, copy=partial(_copy, place)) if iterative else wanted
    attacked: dict[str, Any] = {}
    if shadows:
        attacked = {"shadows": shadow_runs.measured(place, two, plan, rows, shadows, told, state.version)}
    found = findings.audit(two, place.config, plan, rows, wanted)
    facts = {name: summary[name] for name in FACTS if name in summary}
    spent = [line["epsilon"] for line in metric_log.read(folder / "metrics.jsonl") if "epsilon" in line]
    said = {
        **found.said,
        **attacked,
        "run": {**facts, "mode": place.config.privacy.mode, "epsilon": spent[-1] if spent else None},
    }
    if most := gate.bounds(place.config.audit.gate):
        said["gate"] = {"bounds": most, "held_back": gate.broken(said["figures"], most)}
    verdict.write(folder, said)
    return replace(found, said=said)


def _copy(place: Workplace) -> LearningCopy:
    """The run's base, loaded once more, with an adapter of its own that has learned nothing."""
    recipe = strategies.make("fedit", {})
    here = resident.load(place.config, recipe)
    here.handle.write(recipe.first_state(here.layout, RANK, place.config.audit.seed).tensors)
    return LearningCopy(here.handle)


def plan_of(place: Workplace) -> Plan | None:
    """The canaries that are planted in the rows of a simulation's clients; None where the run file has none.

    Raises ConfigError where one does not fit into the records, or `[audit] gate` bounds what cannot be measured.
    """
    config = place.config
    plan = canaries.planned(config.audit, list(place.clients)) if config.audit.canaries else None
    if plan is not None:
        planted_records.check_fits(config, place.base, plan)
    verdict.check(config, plan, held_out=any(client.test_rows for client in place.clients.values()))
    return plan


def rows_of(place: Workplace, plan: Plan | None) -> Rows:
    """The encoded rows of a simulation's clients, without the plan's canaries."""
    trained = planted_records.without_canaries({n: c.train_rows for n, c in place.clients.items()}, plan)
    return Rows(trained, {name: client.test_rows for name, client in place.clients.items()})


def release(folder: Path) -> str:
    """Write `model/` of a run whose gate holds it back, and note it in its summary and audit; returns why it was held.

    Raises ConfigError where no model is held back.
    """
    why, summary = gate.held_back(folder), summary_file.of_ended(folder)
    if not why:
        raise ConfigError(f"--release {folder}: its model is not held back")
    place, _ = workplace.reopen(folder, data=False)
    lines = metric_log.read(folder / "metrics.jsonl")
    facts = run_outputs.facts_of(place.config, lines, summary)
    run_outputs.write_model(folder, place.config, place.base, place.handle, facts)
    del summary["held_back"]
    said = summary | {"model": run_outputs.MODEL, "released_though": why}
    durable.write(folder / summary_file.NAME, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())
    if found := verdict.read(folder):
        verdict.write(folder, {**found, "gate": {**found.get("gate", {}), "released": True}})
    return why
