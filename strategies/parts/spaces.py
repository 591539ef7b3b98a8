"""The spaces that a strategy's steps may move in where pairs of factors need no care of their own."""

from typing import Literal

from fedft import check
from fedft.recipe import Full, LoRA

Space = Literal["full", "lora"]
"""All parameters of the base model, or the LoRA factors only: the option `space` of strategies."""


def kind_of(space: Space, *, along_directions: bool = False) -> Full | LoRA:
    """What is trained in a space, as a kind of adapter.

    Args:
        space: "full" or "lora".
        along_directions: every step is a sum of shared directions, so that a model in half precision stays so (`Full`).
    Raises:
        ValueError: another space.
    """
    check.one_of(("full", "lora"), space=space)
    return Full(along_directions) if space == "full" else LoRA()
