"""What stands in the way of `[privacy]` at a server or a site; rows as those of `checks_machine.py`."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft.cli.checks_machine import FAIL, OK, WARN, Finding
from fedft.errors import ConfigError

if TYPE_CHECKING:
    from fedft.client.site_settings import SiteConfig
    from fedft.config import RunConfig
    from fedft.models.load import Base

INSTALL = "pip install 'fedft[dp]'"
TESTED_RANK = 4


def accountant(needed: bool) -> Finding:
    """Whether dp-accounting is there, which computes epsilon; `needed`: something here asks for noise."""
    try:
        return Finding("accountant", OK, f"dp-accounting {metadata.version('dp-accounting')}")
    except metadata.PackageNotFoundError:
        found = "dp-accounting is not installed: no run with noise ([privacy] mode) starts here"
        return Finding("accountant", FAIL if needed else OK, found, INSTALL if needed else "")


def of_run(config: "RunConfig", roster: Path) -> Iterator[Finding]:
    """What a run's `[privacy]` will cost with the sites that are enrolled; nothing where it hides nothing."""
    from fedft.forecast import privacy_cost
    from fedft.reports import privacy_lines
    from fedft.security.roster import load_roster
    from fedft.server import foreseen_privacy

    said, sites = config.privacy, [n for n, m in load_roster(roster).members.items() if m.state() != "revoked"]
    if said.on:
        yield accountant(needed=True)
    if said.secagg != "off" and len(sites) < said.min_cohort:
        found = f"{len(sites)} sites are enrolled, a secure sum wants {said.min_cohort}"
        yield Finding("privacy", FAIL, found, "enrol more, or lower [privacy] min_cohort, to 3 at least")
    if not (said.on and sites):
        return

    cost = privacy_cost.cost(foreseen_privacy.scheduled(config, dict.fromkeys(sites)), 1)
    for line in privacy_lines.lines(cost):
        if line.startswith(("privacy", "epsilon")):
            yield Finding("privacy", OK, line[9:])
    if (cost["epsilon"] or 0.0) > privacy_lines.MEANINGLESS:
        found = f"above epsilon {privacy_lines.MEANINGLESS:g} next to nothing is promised"
        yield Finding(
            "privacy", WARN, found, "more noise, or fewer rounds and steps; `fedft plan` shows what each costs"
        )


def of_site(site: "SiteConfig") -> Iterator[Finding]:
    """The site's own part: accountant, what its rows have cost so far, and the roster that secure sums go by."""
    from fedft.client import spent_privacy

    policy, noisy = site.policy, [mode for mode in site.policy.require if mode != "secagg"]
    try:
        found = spent_privacy.spent(site)
    except ConfigError:  # no accountant, which has a row of its own
        yield accountant(needed=True)
    else:
        yield accountant(needed=bool(noisy or found or policy.max_epsilon is not None))
        yield _spent(found, policy.max_epsilon)
    yield from _roster(site)


def _spent(said: "dict[str, Any] | None", most: float | None) -> Finding:
    """What a site's rows have cost, of what its policy allows."""
    bound = "no bound" if most is None else f"at most {most:g}"
    if said is None:
        return Finding("privacy", OK, f"nothing is booked on these rows; {bound}")
    found = f"epsilon {said['epsilon']:.3g} of these rows in all runs, at delta {said['delta']:g}; {bound}"
    full = most is not None and said["epsilon"] > 0.95 * most
    remedy = "runs with noise are refused from here on, or soon: [policy] max_epsilon is spent" if full else ""
    return Finding("privacy", WARN if full else OK, found, remedy)


def _roster(site: "SiteConfig") -> Iterator[Finding]:
    """The file of all sites' keys that their operators have given each other."""
    from fedft.security.roster import load_roster

    if site.keys.roster is None:
        asked = "secagg" in site.policy.require
        found = "no [keys] roster: this site takes part in no secure sum"
        remedy = "name a file with all sites' cards, which their operators give each other" if asked else ""
        yield Finding("secure sums", FAIL if asked else OK, found, remedy)
        return
    members, name = load_roster(Path(site.keys.roster)).members, site.site.name
    fewest = site.policy.min_cohort
    if name not in members:
        yield Finding("secure sums", FAIL, f"{site.keys.roster}: has no site {name!r}", "put our own card in, too")
    elif len(members) < fewest:
        found = f"{site.keys.roster}: {len(members)} sites, {fewest} are wanted"
        yield Finding("secure sums", FAIL, found, "wait for more cards, or lower [policy] min_cohort, to 3 at least")
    else:
        yield Finding("secure sums", OK, f"{len(members)} sites in {site.keys.roster}")


def self_test(base: "Base", required: bool) -> Iterator[Finding]:
    """Whether gradients of single records are right on this model and device, by four made-up records.

    Only of models that write text; the others are tested when they train. The model has an adapter afterwards.

    Args:
        base: the site's.
        required: whether the site takes part in nothing else than such runs.
    """
    import torch

    from fedft.adapters.lora import LoRA
    from fedft.data.batches import ClientRows, collate
    from fedft.data.examples import Example
    from fedft.errors import PlanRefused
    from fedft.models import tasks
    from fedft.models.handle import ModelHandle
    from fedft.models.layout import layout_of
    from fedft.training.per_example import self_test as test

    if base.task != tasks.CAUSAL.name:
        return
    handle = ModelHandle(base.model, layout_of(base, "all-linear"), LoRA())
    handle.write(LoRA().start(handle.layout, TESTED_RANK, 0))
    handle.training(True)
    draws = torch.Generator().manual_seed(0)
    texts = [torch.randint(len(base.tokenizer), (n,), generator=draws).tolist() for n in (5, 8, 12, 17)]
    rows = [Example(ids, ids, 0) for ids in texts]
    try:
        test(handle, rows, ClientRows(rows, len(rows), lambda some: collate(some, 0)))
    except PlanRefused as e:
        remedy = "leave [model] dtype and device as the run has them; runs with example-dp are refused here"
        yield Finding("privacy", FAIL if required else WARN, str(e), remedy)
    else:
        yield Finding("privacy", OK, "gradients of single records are exact on this model and device (example-dp)")
