"""The model that a site has at the end of a run, from its own disk and its own base model: `fedft site export`.

It is what the site evaluates: the state that it received last, and with strategies whose clients keep private parts
these too, of the same time. A site that was asked to evaluate the final state has that; else it has an earlier one.
"""

from pathlib import Path
from typing import NamedTuple

from fedft import strategies
from fedft.client import allowed_jobs
from fedft.client.disk import plan_of
from fedft.client.known_runs import KnownRuns
from fedft.client.private_state import Kept
from fedft.client.site_settings import SiteConfig
from fedft.client.state_files import GROWING, WHOLE, read_file
from fedft.client.train import Client
from fedft.contract import State
from fedft.errors import ConfigError, PlanRefused
from fedft.models import model_folder, resident
from fedft.models.model_card import RunFacts
from fedft.update import Plan


class Exported(NamedTuple):
    """What `export` wrote."""

    kind: str
    """As `model_folder.write` calls it."""
    run: str
    rounds: int
    """Rounds after which the run had this state."""
    personal: bool
    """Whether the model is this site's own, of what it shares and what it keeps."""
    part_of_rank: int
    """The rank of the site's adapter, where its strategy gives sites a part of the state by rank; else 0."""


def export(site: SiteConfig, run: str, to: Path, *, merged: bool = False) -> Exported:
    """Write the model that the site has of a run to the folder `to`; nothing is asked of anybody.

    Args:
        site: whose state folder and base model are used.
        run: identifier of the run, or its first digits.
        to: folder; must not exist or be empty.
        merged: the whole model with the change merged in, instead of a PEFT folder.
    Raises:
        ConfigError: no such run, nothing of it on this disk, another base model than the run's, or a folder that
            cannot be written. DataError: the base model cannot be loaded.
    """
    model_folder.check_free(to)
    state = Path(site.site.state)
    known = KnownRuns(state).find(run)
    plan, held = received(state, known.run)
    try:
        config = allowed_jobs.run_config(known.job, site)
        recipe = strategies.of(config)
        here = resident.load(config, recipe)
        own = state / "kept" / known.run
        kept = own if own.is_dir() else own.parent
        client = Client(site.site.name, [], [], here.base, here.handle, recipe, config, kept=Kept(kept))
        client.join(known.job)
        if recipe.personal and client.kept.has_lost(plan.counted):
            raise ConfigError(
                f"run {known.run}: what this site kept for itself after round {plan.counted} is not in {kept}; "
                "restore kept/ from a backup"
            )
        client.memory.hold(held.version, plan.label, held.tensors)
        client.install(plan)
    except PlanRefused as e:
        raise ConfigError(f"run {known.run}: {e.code}: {e}") from e
    known_here = RunFacts(summary={"rounds": held.version})
    kind = model_folder.write(to, config, here.base, here.handle, merged=merged, run=known_here)
    return Exported(kind, known.run, held.version, recipe.personal, plan.rank if recipe.cuts_the_state else 0)


def received(folder: Path, run: str) -> tuple[Plan, State]:
    """(plan that brings a client to it, state) that a site's state folder holds of a run. Raises ConfigError."""
    for path in [*folder.glob(f"{GROWING}-*.fedft"), *folder.glob(f"{WHOLE}*.fedft")]:
        found = read_file(path)
        try:
            if found is not None and found[0]["run"] == run:
                return plan_of(found[0]), found[1]
        except (KeyError, ValueError):
            continue
    wanted = "a later run may have taken its place, or the site took no part in it"
    raise ConfigError(f"run {run}: {folder} holds no state of it that can be read; {wanted}")
