"""FFA-LoRA: A is drawn once from the run's seed, frozen for ever and for everyone; only B learns and travels.

    D* = sum_k p_k B_k A0 = (sum_k p_k B_k) A0                                  exact, and linear in every B_k

Upload and download are d_out / (d_in + d_out) of LoRA's; A costs the 8 bytes of a seed, once.

Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, arXiv:2403.12313.
"""

from fedft.arithmetic.named_pairs import B_SUFFIX
from fedft.recipe import LoRA, Recipe


def ffa_lora() -> Recipe:
    """LoRA with A frozen; the aggregate of products is the product of the aggregate."""
    return Recipe("ffa_lora", LoRA(learns=(B_SUFFIX,)), ring_summable=True, bases="any", unlike_modules=True)
