"""The contract of a planner: (state, {client: Member}) -> {client: Work}, of who does other than the run file says."""

from collections.abc import Callable, Mapping

from fedft.adapters.lora import LoRA
from fedft.contract import Member, State, Work
from fedft.recipe import Recipe
from fedft.suites.promises import kept
from fedft.suites.toy import RUN, toy
from fedft.update import Plan

Planner = Callable[[State, Mapping[str, Member]], Mapping[str, Work]]

ROSTERS = (
    {f"client-{k}": Member(3, {"rows": 10.0 * (k + 1), "held_out": 2.0}) for k in range(5)},
    {f"client-{k}": Member(3) for k in range(2)},  # nobody said anything of itself
)


def _state() -> State:
    return toy(Recipe("plain", LoRA(), unlike_ranks=True)).state()


def _it_plans_for_who_is_there(planner: Planner) -> None:
    for roster in ROSTERS:
        strangers = planner(_state(), roster).keys() - roster.keys()
        assert not strangers, f"it plans for {sorted(strangers)}, who are not in the roster"


def _the_same_roster_gives_the_same_plan(planner: Planner) -> None:
    for roster in ROSTERS:
        assert dict(planner(_state(), roster)) == dict(planner(_state(), roster)), "two calls differ"
        turned = dict(reversed(list(roster.items())))
        assert dict(planner(_state(), turned)) == dict(planner(_state(), roster)), "the order of the roster matters"


def _plans_can_be_carried_out(planner: Planner) -> None:
    """No rank is below 1 or above the state's; steps are at least 1, and rates not negative."""
    recipe = Recipe("plain", LoRA(), unlike_ranks=True, plan=planner)
    for roster in ROSTERS:
        plans = recipe.plans(_state(), roster, Plan(RUN, 0, 0, steps=4, learning_rate=0.1), 3)
        for client, plan in plans.items():
            ranks = [plan.rank, *plan.ranks.values()]
            assert min(ranks) >= 1, f"{client} has ranks {ranks}"
            assert plan.steps >= 1, f"{client} takes {plan.steps} steps"
            assert plan.learning_rate >= 0, f"{client} has a learning rate of {plan.learning_rate}"


PROMISES = {
    "it plans for who is there": _it_plans_for_who_is_there,
    "the same roster gives the same plan, in any order": _the_same_roster_gives_the_same_plan,
    "plans can be carried out": _plans_can_be_carried_out,
}


def planner_contract(planner: Planner, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `planner`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, planner, getattr(planner, "__name__", "planner"), stop=stop)
