"""One audit of one model: exposure, membership, a lower bound on epsilon and what is generated, as plain figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fedft.config import RunConfig
from fedft.privacy.audit import contrasts, exposure, lower_bound, membership
from fedft.privacy.audit.canaries import ALTERNATIVES, Plan
from fedft.privacy.audit.contrasts import Wanted
from fedft.privacy.audit.exposure import Exposed
from fedft.privacy.audit.two_models import TwoModels
from fedft.privacy.tables import OF_RECORDS
from fedft.randomness import philox

T = TypeVar("T")
VERSION = 1
MOST_ROWS = 1000
"""Rows of either kind whose membership is tried; more are drawn from by the audit's seed."""


@dataclass(frozen=True)
class Rows:
    """Encoded rows of a run by client, without canaries."""

    trained: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    held_out: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Findings:
    """What an audit found."""

    said: dict[str, Any]
    """What `audit.json` holds: numbers, and why some are missing; no text of any record."""
    texts: list[tuple[float, str, str]] = field(default_factory=list, repr=False)
    """As `contrasts.Found.texts`."""


def audit(two: TwoModels, config: RunConfig, plan: Plan | None, rows: Rows, wanted: Wanted) -> Findings:
    """What an outsider could take from the model that stands in `two`.

    Args:
        two: the released model and its base.
        config: the run file.
        plan: of the run's canaries; None: nothing was planted.
        rows: those that were trained on, and others like them; none where they are not to be had.
        wanted: how much is generated.
    Returns:
        Findings; `said["figures"]` has the numbers that a gate reads, `said["missing"]` why others are not there.
    """
    missing: list[str] = []
    said: dict[str, Any] = {"version": VERSION}
    figures: dict[str, float] = {}
    if plan is None or not plan.canaries:
        missing.append("exposure, epsilon_lower: no canaries were planted, see [audit] canaries")
    else:
        found, before = _exposed(two, config, plan)
        said["canaries"] = {"alternatives": ALTERNATIVES, "groups": exposure.groups(found, before)}
        if planted := [g["exposure"] for g in said["canaries"]["groups"] if "exposure" in g]:
            figures["exposure"] = max(planted)
        bound = _bound(found, config, missing)
        if bound:
            said["epsilon_lower"] = bound
            figures["epsilon_lower"] = bound["epsilon"]
    members, others = drawn(_all(rows.trained), config), drawn(_all(rows.held_out), config)
    if members and others:
        said["membership"] = _membership(two, members, others)
        figures["auc"] = said["membership"]["calibrated"]["auc"]
        if min(len(members), len(others)) < membership.FEWEST:
            missing.append(f"rates of few false positives: fewer than {membership.FEWEST} rows of a kind")
    else:
        missing.append("membership: no rows of both kinds, trained on and held out")
    generated = contrasts.contrasts(two, config, plan, _all(rows.held_out), rows.trained, wanted)
    said["generated"] = generated.figures
    if why := generated.figures.get("why"):
        missing.append(f"generation: {why}")
    if "verbatim" in generated.figures:
        figures["verbatim"] = generated.figures["verbatim"]
    return Findings({**said, "figures": figures, "missing": missing}, generated.texts)


def _exposed(two: TwoModels, config: RunConfig, plan: Plan) -> tuple[list[Exposed], list[Exposed]]:
    """(under the tuned model, under the base) of each canary."""
    rows = exposure.encoded(plan, config, two.base, two.handle.objective.encode)
    found = exposure.exposures(plan, two.losses(rows))
    with two.as_base():
        return found, exposure.exposures(plan, two.losses(rows))


def _bound(found: Sequence[Exposed], config: RunConfig, missing: list[str]) -> dict[str, Any] | None:
    """The lower bound with what it is made of; None, with why in `missing`, where there are too few canaries."""
    mode = config.privacy.mode
    # where the unit is a record, a canary that stands there often is many of them
    own = [e for e in found if e.canary.repeats == 1] if mode in OF_RECORDS else list(found)
    guesses, right = lower_bound.guessed(own)
    if not guesses:
        of = " that stand there once" if mode in OF_RECORDS else ""
        missing.append(f"epsilon_lower: {len(own)} canaries{of}, wanted {lower_bound.SHARE} or more")
        return None
    bound = lower_bound.epsilon_lower(guesses, right)
    return {"epsilon": bound, "guesses": guesses, "right": right, "canaries": len(own), "level": lower_bound.LEVEL}


def _membership(two: TwoModels, members: Sequence[Any], others: Sequence[Any]) -> dict[str, Any]:
    both = [*members, *others]
    tuned = two.losses(both)
    with two.as_base():
        before = two.losses(both)
    n = len(members)
    return membership.measured((tuned[:n], before[:n]), (tuned[n:], before[n:]))


def _all(rows: Mapping[str, Sequence[Any]]) -> list[Any]:
    return [row for own in rows.values() for row in own]


def drawn(rows: Sequence[T], config: RunConfig) -> list[T]:
    """All rows, or MOST_ROWS of them by the audit's seed, in their order."""
    order = sorted(range(len(rows)), key=lambda n: philox.derive(config.audit.seed, "audit rows", n))
    return [rows[n] for n in sorted(order[:MOST_ROWS])]
