"""FFA-LoRA: A is drawn once from the run's seed, frozen for ever and for everyone; only B learns and travels.

    D* = sum_k p_k B_k A0 = (sum_k p_k B_k) A0                                  exact, and linear in every B_k

Upload and download are d_out / (d_in + d_out) of LoRA's; A costs the 8 bytes of a seed, once.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.
"""

from torch import Tensor

from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX
from fedft.contract import Handle, Layout, Turn
from fedft.recipe import Recipe

SPACE = LoRA(learns=(B_SUFFIX,))


def ffa_lora() -> Recipe:
    """LoRA with A frozen; the aggregate of products is the product of the aggregate."""
    return Recipe("ffa_lora", SPACE, initial=_without_a, start=_start, ring_summable=True)


def _without_a(layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
    return {n: x for n, x in SPACE.initial(layout, rank, seed).items() if not n.endswith(A_SUFFIX)}


def _start(handle: Handle, turn: Turn) -> None:
    handle.write({**SPACE.initial(handle.layout, turn.plan.shape, turn.run_seed), **turn.held})
