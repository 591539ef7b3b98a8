"""What strategies share that work on another one: `on = "ffa_lora"`, or `on = { name = "fedprox", mu = 0.1 }`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Next, State, Term
from fedft.recipe import Recipe
from fedft.registry import named
from fedft.training.first_order import gradient_steps

On = str | dict[str, Any] | Recipe
"""A method by name with its default options, a table of its name and options, or in Python a recipe."""


def wrapped(on: On) -> Recipe:
    """The recipe that is meant. Raises ConfigError for a name or an option that does not exist."""
    if isinstance(on, Recipe):
        return on
    from fedft.strategies import make  # late: that module looks strategies up, those that wrap among them

    return make(*named(on, "strategy"))


def with_term(recipe: Recipe, term: Term, who: str) -> Recipe:
    """The recipe with one more term in its gradient steps, behind those it has.

    Raises ValueError in the name of `who` where its local steps are not back-propagation.
    """
    if (steps := gradient_steps(recipe.local)) is None:
        raise ValueError(f"{who} cannot be on {recipe.name}: it adds to gradients, and these local steps have none")
    return replace(recipe, local=steps.with_term(term))


def with_server_step(recipe: Recipe, step: Callable[[State, Tensors], Next], who: str) -> Recipe:
    """The recipe whose server gives the mean change of x to `step` instead of adding it to x.

    What a state has beside x, as control variates are, keeps its own rule (`Recipe.with_server`). Raises ValueError in
    the name of `who` where the server does more, or less, than add the mean of all changes to one x.
    """
    steps = gradient_steps(recipe.local)
    sends_values = recipe.upload_kind != "changes" or (steps is not None and steps.send == "value")
    if sends_values or not (recipe.averages and recipe.adds):
        raise ValueError(
            f"{who} cannot be on {recipe.name}: its server does more, or less, than add the mean of all changes to one"
            " x; stacked factors have no identity from round to round, so there a server optimiser must act on the"
            " dense change (flexlora's momentum option)"
        )
    moved = recipe.with_server(recipe, step) if recipe.with_server else replace(recipe, server=step)
    return replace(moved, adds_changes=False)
