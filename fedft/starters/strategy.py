"""example: plain LoRA whose server takes a step of its own length along the mean of what clients changed.

    A^{t+1} = A^t + eta sum_k p_k dA_k,   B^{t+1} = B^t + eta sum_k p_k dB_k              p_k = n_k / sum_j n_j

Say here what is new, in formulas, and which paper it is from. Every part of a `Recipe` that is left out has a plain
default: see its fields for what there is to change (local steps, what is sent, aggregation, the server's own memory).
"""

from fedft import check
from fedft.recipe import LoRA, Recipe, State, Tensors, add


def example(*, server_lr: float = 0.5) -> Recipe:
    """The mean of changes, times a rate.

    Args:
        server_lr: eta, above 0.
    """
    check.above(0, server_lr=server_lr)

    def server(state: State, change: Tensors) -> Tensors:
        return add(state, {name: server_lr * x for name, x in change.items()})

    return Recipe("example", LoRA(), server=server)
