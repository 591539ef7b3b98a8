"""What a site's `[policy] max_memory_mib` lets a plan take: its forecast, made of the site's own rows and base."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedft.client.site_settings import Policy
from fedft.config import RunConfig
from fedft.errors import PlanRefused
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.rows import encoded
from fedft.forecast.work import Forecaster
from fedft.models.resident import Resident
from fedft.recipe import Recipe
from fedft.update import Plan

MIB = 2**20


def check_of(
    policy: Policy, config: RunConfig, recipe: Recipe, here: Resident, rows: tuple[Sequence[Any], Sequence[Any]]
) -> Callable[[Plan], None]:
    """The function that raises PlanRefused, `policy_memory`, for a plan that would take more than the policy allows.

    `rows`: encoded, (train, held out). Without a limit in the policy every plan is fine.
    """
    most = policy.max_memory_mib
    if most is None:
        return lambda plan: None
    known: Mapping[str, Any] = encoded({"": rows}, config)
    of = Forecaster(anatomy_of(here.base, config.model.modules_to_save), here.layout, config, recipe, known[""])

    def check(plan: Plan) -> None:
        peak = of.memory(recipe.takes(plan), trains=not plan.evaluate).peak
        if peak > most * MIB:
            said = f"{peak / MIB:.0f} MiB of memory are foreseen, [policy] max_memory_mib = {most}"
            raise PlanRefused("policy_memory", said)

    return check
