"""What strategies share that work on another one: `on = "ffa_lora"`, or `on = { name = "fedprox", mu = 0.1 }`."""

from dataclasses import replace
from typing import Any

from fedft.contract import Term
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
