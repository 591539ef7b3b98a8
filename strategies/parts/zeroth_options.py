"""Options of zeroth-order steps: written once in `fedft.training.zeroth_rules.Walk`, taken by strategies that walk.

@takes_walk("blocks", epsilon=5e-4)
def mine(how: Walk, *, K: int = 64) -> Recipe: ...

mine(K=8, rule="sign")        K is the strategy's own option, rule the walk's; blocks is no option of `mine`
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import fields, replace
from functools import wraps
from typing import Any, get_type_hints

from fedft.recipe import Recipe
from fedft.training.zeroth_rules import Walk


def takes_walk(*absent: str, **defaults: Any) -> Callable[[Callable[..., Recipe]], Callable[..., Recipe]]:
    """A decorator of a factory whose first parameter is a `Walk`: its options become the factory's.

    Args:
        absent: options of the walk that the strategy does not have; they stay at their defaults.
        defaults: those whose defaults are the strategy's own.
    """
    hints = get_type_hints(Walk)
    taken = [f for f in fields(Walk) if f.name not in absent]

    def decorate(factory: Callable[..., Recipe]) -> Callable[..., Recipe]:
        first, *own = inspect.signature(factory, eval_str=True).parameters.values()
        of_walk = [
            inspect.Parameter(
                f.name, first.KEYWORD_ONLY, default=defaults.get(f.name, f.default), annotation=hints[f.name]
            )
            for f in taken
        ]
        signature = inspect.Signature([*own, *of_walk], return_annotation=Recipe)

        @wraps(factory)
        def made(**options: Any) -> Recipe:
            given = signature.bind(**options)  # TypeError for what is no option
            given.apply_defaults()
            how = Walk(**{f.name: given.arguments.pop(f.name) for f in taken})
            return replace(factory(how, **given.arguments), walk=how)

        made.__signature__ = signature  # type: ignore[attr-defined]
        made.__doc__ = _documented(factory.__doc__ or "", {f.name for f in taken})
        return made

    return decorate


def _documented(doc: str, taken: set[str]) -> str:
    """A factory's docstring with the lines of the walk's options behind its own."""
    args = inspect.cleandoc(Walk.__doc__ or "").partition("Args:\n")[2]
    entries = re.findall(r"^    (\w+): ((?:.*\n?)(?:        .*\n?)*)", args, re.MULTILINE)
    lines = [f"    {name}: {text.rstrip()}" for name, text in entries if name in taken]
    own = inspect.cleandoc(doc)
    return "\n".join([own if "Args:" in own else f"{own}\n\nArgs:", *lines])
