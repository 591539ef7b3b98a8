"""What strategies share whose clients have unlike ranks around one pair of the largest rank in every module.

down     the first r_k rows of A and columns of B                                  (`cut_to_rank`)
up       values of the factors at rank r_k, and of a head
server   values replace the state's; ranks that nobody of the cohort holds stay
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import replace_pairs
from fedft.arithmetic.tensors import Tensors
from fedft.contract import State
from fedft.recipe import Recipe, cut_to_rank
from fedft.training.first_order import FirstOrder
from fedft.update import Update


def of_unlike_ranks(name: str, aggregate: Callable[[Iterable[Update]], dict[str, Tensor]]) -> Recipe:
    """A recipe of LoRA whose `aggregate` makes values at the largest rank that was sent of values at any rank."""
    return Recipe(
        name,
        LoRA(),
        aggregate=aggregate,
        local=FirstOrder("value"),
        server=keep_largest_rank,
        downlink=cut_to_rank,
        linear=False,  # values of unlike shapes, not changes that add up
        unlike_ranks=True,
        bases="any",
        upload_kind="values",
    )


def keep_largest_rank(state: State, change: Tensors) -> Tensors:
    """The state with the values of the change, whose pairs may have smaller ranks (`padded_to` says what they get)."""
    return replace_pairs(state.tensors, change)
