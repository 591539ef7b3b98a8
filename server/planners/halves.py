"""A share of the adapted modules learns in a round, another one in the next; the others stay as they came.

Every client draws its own share in every round: the ceil(share x modules) modules with the smallest draws of
philox.derive(seed, "plan", client, round). With `alike` all clients draw the same one, so that sums stay sums of equal
shapes. Half of all is what half fine-tuning freezes.

Hui, Zhang, Wang, Xu, Sun, Wu, Wang, "HFT: Half Fine-Tuning for Large Language Models", 2024, arXiv:2404.18466.
"""

import math
from collections.abc import Mapping

from fedft import check
from fedft.contract import Planner, Roster, State, Work
from fedft.randomness import philox
from fedft.server.planners.modules import modules_of
from fedft.update import Shape


def halves(*, share: float = 0.5, alike: bool = False) -> Planner:
    """A planner by which a drawn `share` of the modules learns; `alike`: the same one at all clients."""
    check.above(0, share=share)
    check.between(0, 1, share=share)

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        modules = modules_of(state)
        count = math.ceil(share * len(modules))
        return {
            c: Work(Shape(roster[c].rank, chosen=drawn(modules, count, "" if alike else c, roster))) for c in roster
        }

    plan.unlike_modules = True  # type: ignore[attr-defined]
    return plan


def drawn(modules: tuple[str, ...], count: int, client: str, roster: Roster) -> tuple[str, ...]:
    """`count` of the modules, in their order, as the client draws them in this round."""
    seed = philox.derive(roster.seed, "plan", client, roster.round)
    found = sorted(modules, key=lambda m: philox.derive(seed, "module", m))[:count]
    return tuple(m for m in modules if m in found)
