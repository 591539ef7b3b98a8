"""The contract of a planner: (state, Roster) -> {client: Work}, of who does other than the run file says."""

from collections.abc import Mapping

from fedft.adapters.lora import LoRA
from fedft.contract import Forecast, Member, Planner, Roster, Seen, State, Work
from fedft.recipe import Recipe
from fedft.suites.promises import kept
from fedft.suites.toy import RUN, toy
from fedft.update import Plan, Shape

RICH = {"rows": 10.0, "held_out": 2.0, "memory": 2e9, "flops": 1e12, "up": 1e6, "down": 4e6}


def _forecast(work: Work) -> Forecast:
    """A made-up forecast that grows with ranks, steps and records."""
    shape, steps, batch = work.shape or Shape(3), work.steps or 4, work.batch or 4
    size = shape.rank + sum(shape.ranks.values())
    return Forecast(1e8 + 1e6 * size * batch, 1e9 * steps * batch * (1 + size), 1000 * size, 2000 * size)


def _seen(round: int, k: int) -> Seen:
    return Seen(round, 3, 4, seconds=1.0 + k, up=1000, down=2000, loss=2.0 - round / 10, norm=1.0, admitted=True)


def _roster(members: Mapping[str, Member]) -> Roster:
    return Roster(members, 2, 7, tuple(sorted(members)), _forecast)


MEMBERS: tuple[dict[str, Member], ...] = (
    {f"client-{k}": Member(3, {**RICH, "rows": 10.0 * (k + 1), "flops": 1e12 / (k + 1)}) for k in range(5)},
    {f"client-{k}": Member(3) for k in range(2)},  # nobody said anything of itself
    {f"client-{k}": Member(3, {"rows": 8.0}, (_seen(0, k), _seen(1, k))) for k in range(3)},
)
ROSTERS = tuple(_roster(members) for members in MEMBERS)


def _state() -> State:
    return toy(Recipe("plain", LoRA(), unlike_ranks=True)).state()


def _it_plans_for_who_is_there(planner: Planner) -> None:
    for roster in ROSTERS:
        strangers = planner(_state(), roster).keys() - roster.keys()
        assert not strangers, f"it plans for {sorted(strangers)}, who are not in the roster"


def _the_same_roster_gives_the_same_plan(planner: Planner) -> None:
    for roster in ROSTERS:
        assert dict(planner(_state(), roster)) == dict(planner(_state(), roster)), "two calls differ"
        turned = _roster(dict(reversed(list(roster.items()))))
        assert dict(planner(_state(), turned)) == dict(planner(_state(), roster)), "the order of the roster matters"


def _plans_can_be_carried_out(planner: Planner) -> None:
    """Something learns, at ranks up to the state's; steps are at least 1, rates and batches not negative."""
    recipe = Recipe("plain", LoRA(), unlike_ranks=True, unlike_modules=True, plan=planner)
    for roster in ROSTERS:
        plans = recipe.plans(_state(), roster, Plan(RUN, 0, 0, steps=4, learning_rate=0.1), 3)
        for client, plan in plans.items():
            ranks = [plan.rank, *plan.ranks.values()]
            assert min(ranks) >= 0, f"{client} has ranks {ranks}"
            assert max(ranks) >= 1, f"nothing learns at {client}"
            assert plan.batch >= 0, f"{client} has batches of {plan.batch}"
            assert plan.bits in (0, 4, 8, 16, 32), f"{client} is asked for a base of {plan.bits} bits"
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
