"""A few layers learn in a round: those that have moved furthest, and some that are drawn, so that none is forgotten.

    score(l)  = sqrt(sum of |B A|^2 over the modules m of layer l), of the state that the round begins from
    learn     = the `most` - `drawn` layers of the highest score, and `drawn` of the others

Draws are Philox's, for every client and round; while nothing has moved, all are drawn. Layer-wise sparse tuning by
importance with a random part is IST's idea; its importance is learned from losses of single layers, ours is what
aggregated updates show.

Yao, Cheng, Gao, Qin, Sun, "Layer-wise Importance Matters: Less Memory for Better Performance in Parameter-efficient
Fine-tuning of Large Language Models", Findings of EMNLP 2024, arXiv:2410.11772.
"""

from collections import defaultdict
from collections.abc import Mapping

from fedft import check
from fedft.contract import Planner, Roster, State, Work
from fedft.server.planners.halves import drawn as drawn_of
from fedft.server.planners.modules import moved
from fedft.training.layers import layer_of
from fedft.update import Shape


def important_layers(*, most: int = 8, drawn: int = 1) -> Planner:
    """A planner by which at most `most` layers learn, `drawn` of them by lot. A model with no more learns whole."""
    check.at_least(1, most=most)
    check.between(0, most, drawn=drawn)

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        scores = layer_scores(state)
        if len(scores) <= most:
            return {}
        ranked = sorted(scores, key=lambda layer: (-scores[layer], layer))
        by_score = ranked[: most - drawn] if any(scores.values()) else []
        others = tuple(layer for layer in scores if layer not in by_score)
        lots = {c: drawn_of(others, most - len(by_score), c, roster) for c in roster}
        return {c: Work(Shape(roster[c].rank, chosen=(*sorted(by_score), *lot))) for c, lot in lots.items()}

    plan.unlike_modules = True  # type: ignore[attr-defined]
    return plan


def layer_scores(state: State) -> dict[str, float]:
    """How far the run has moved each numbered layer, by its name, as "model.layers.3"."""
    squares: dict[str, float] = defaultdict(float)
    for module, distance in moved(state).items():
        if (layer := layer_of(module)) is not None:
            squares[layer[0]] += distance**2
    return {layer: square**0.5 for layer, square in squares.items()}
