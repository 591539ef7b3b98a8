"""What learns at a client under a plan, and how many numbers that is: what memory and operations are computed from."""

from collections.abc import Callable, Mapping
from math import prod

from fedft.arithmetic.named_pairs import A_SUFFIX
from fedft.contract import Layout
from fedft.forecast.activations import Learning
from fedft.forecast.anatomy import Anatomy
from fedft.forecast.memory import Sizes
from fedft.models.layer_numbers import number_of
from fedft.recipe import Recipe
from fedft.training.first_order import steps_within
from fedft.update import Plan, Shape


def learning_of(
    anatomy: Anatomy, layout: Layout, recipe: Recipe, plan: Plan, held: int, *, w0: bool
) -> tuple[Learning, Sizes]:
    """(what learns, how many numbers that is and what else there is of the adapter).

    Args:
        anatomy: of the base model.
        layout: its trainable parts, as the recipe's kind of adapter takes them.
        recipe: of the strategy.
        plan: of the client, without tensors.
        held: numbers that the client holds of the state.
        w0: whether weights that the state changes stand beside their first values.
    """
    space = recipe.space
    trained = {n: prod(s) for n, s in space.trained(layout, plan.shape).items()}
    learns = _learns(recipe, plan)
    live = {n: size for n, size in trained.items() if learns(n)}
    head = sum(map(prod, layout.head.values()))
    modules = {n.rpartition(".")[0] for n in live}
    of_base = space.of_base
    ranks = {m: 0 if of_base else plan.shape.of(m) for m in anatomy.parts if m in modules}
    full = of_base and not plan.chosen
    by_layer = [0] * anatomy.layers
    for n, size in live.items():
        if (at := number_of(n)) is not None and at < len(by_layer):
            by_layer[at] += size
    learned = sum(live.values())
    frozen = sum(trained.values()) - learned
    if space.pairs:
        frozen += _frozen_factors(layout, plan.shape, trained)
    originals = sum(o * i for o, i in layout.modules.values()) if w0 else 0
    sizes = Sizes(
        learned + head, max((*live.values(), *map(prod, layout.head.values())), default=0),
        0 if of_base else frozen, held + originals, by_layer, head + (learned if of_base else 0),
    )  # fmt: skip
    inputs = not space.pairs or any(n.endswith(A_SUFFIX) for n in live)
    return Learning({} if full else ranks, full, inputs), sizes


def _learns(recipe: Recipe, plan: Plan) -> Callable[[str], bool]:
    """Whether a tensor of this name learns under a plan."""
    steps = steps_within(recipe.local)
    endings = steps.trains(plan) if steps is not None and steps.trains is not None else ("",)
    return lambda name: name.endswith(endings) and plan.shape.learns(name)


def _frozen_factors(layout: Layout, shape: Shape, trained: Mapping[str, int]) -> int:
    """Numbers of factors that are drawn from the run's seed and never learn."""
    whole = sum(shape.of(m) * (o + i) for m, (o, i) in layout.modules.items())
    return max(0, whole - sum(trained.values()))
