"""The gate at the end of a run: an audit, before the model is written, and whether it is held back.

check(config, plan, held_out=True)                          before the run: every bound is one that can be measured
why = judged(folder, two, config, plan, rows)               at its end; audit.json is written; "" lets the model out
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.config import RunConfig
from fedft.errors import ConfigError, ModelHeldBack
from fedft.privacy.audit import contrasts, gate, lower_bound
from fedft.privacy.audit.canaries import Plan
from fedft.privacy.audit.contrasts import Wanted
from fedft.privacy.audit.findings import Rows, audit
from fedft.privacy.audit.two_models import TwoModels
from fedft.privacy.tables import OF_RECORDS

FILE = "audit.json"
"""In the run folder: what the last audit found. It has no text of any record."""


def check(config: RunConfig, plan: Plan | None, held_out: bool) -> None:
    """Return None if each figure that `[audit] gate` bounds can be measured at the run's end. Raises ConfigError.

    Args:
        config: the run file.
        plan: of the canaries; None: there are none.
        held_out: whether rows that are not trained on are here to compare with.
    """
    wanted = gate.bounds(config.audit.gate)
    found = plan.canaries if plan else ()
    once = config.privacy.mode in OF_RECORDS
    guessed = [c for c in found if c.repeats == 1] if once else found
    why = {
        "exposure": "" if any(c.planted for c in found) else "no canary is planted, see [audit] canaries",
        "epsilon_lower": ""
        if len(guessed) >= lower_bound.SHARE
        else f"it needs {lower_bound.SHARE} canaries or more{', of repeats 1' if once else ''}",
        "auc": "" if held_out else "nobody here has held-out rows",
        "verbatim": contrasts.unfit(config) or ("" if any(c.planted for c in found) else "no canary is planted"),
    }
    for name in wanted:
        if why[name]:
            raise ConfigError(f"[audit] gate: {name} cannot be measured: {why[name]}")


def judged(folder: Path, two: TwoModels, config: RunConfig, plan: Plan | None, rows: Rows) -> str:
    """Why the model that stands in `two` may not be given out, in one line; "" where it may, or nothing is bounded.

    Writes `audit.json` where something is. The arguments are those of `findings.audit`, and the run's folder.
    """
    most = gate.bounds(config.audit.gate)
    if not most:
        return ""
    wanted = Wanted() if "verbatim" in most else Wanted(samples=0)
    said = audit(two, config, plan, rows, wanted).said
    why = gate.broken(said["figures"], most)
    write(folder, {**said, "gate": {"bounds": most, "held_back": why}})
    return why


def write(folder: Path, said: Mapping[str, Any]) -> None:
    """Write `audit.json` of a run. Raises RunPaused where the disk does not take it."""
    durable.write(folder / FILE, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())


def read(folder: Path) -> dict[str, Any]:
    """What `audit.json` of a run says; empty where it was not audited."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def raise_if_held(folder: Path, summary: Mapping[str, Any]) -> None:
    """Raise ModelHeldBack where the summary of a run that has ended says so."""
    if why := summary.get("held_back"):
        raise ModelHeldBack(
            f"{folder}: the run has ended, its model is held back: {why}; "
            f"`fedft audit {folder} --release` writes model/ all the same"
        )
