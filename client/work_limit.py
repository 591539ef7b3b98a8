"""What a site's `[policy] max_work` lets a round ask for, in tokens that are passed through the model to train on.

    work = steps x batch x max_length          x samples, of a zeroth-order step that probes several directions
                                               x answers, 2 of a record that is a pair of them

as many as there can be: rows may be shorter. An evaluation is bounded by the site's own rows, and is not counted.
"""

from collections.abc import Callable
from math import prod

from fedft import registry
from fedft.client.job_limits import at_most
from fedft.client.site_settings import Policy
from fedft.config import RunConfig
from fedft.update import Plan


def check_run(said: RunConfig, policy: Policy) -> None:
    """Return None if the rounds of a job ask for no more; else raise PlanRefused, `policy_work`.

    The job's other limits are checked before, so that all of these are numbers.
    """
    _check(said, said.local.steps, said.local.batch_size, policy)


def check_of(policy: Policy, config: RunConfig) -> Callable[[Plan], None]:
    """The function that raises PlanRefused, `policy_work`, for a plan that asks for more than the policy allows."""

    def check(plan: Plan) -> None:
        if not plan.evaluate:
            _check(config, plan.steps, plan.batch or config.local.batch_size, policy)

    return check


def _check(config: RunConfig, steps: int, batch: int, policy: Policy) -> None:
    if policy.max_work is None:
        return
    samples = max(own.get("samples", 1) for _, own in registry.tower(config.strategy.name, config.strategy.options))
    answers = 2 if config.local.pairs else 1
    of_records = {"steps": steps, "batch": batch, "max_length": config.data.length}
    parts = of_records | {name: n for name, n in (("samples", samples), ("answers", answers)) if n > 1}
    said = " x ".join(f"{name} {count}" for name, count in parts.items())
    at_most("policy_work", f"{said}: tokens of a round", prod(parts.values()), policy.max_work)
