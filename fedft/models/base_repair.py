"""What packing a weight has lost, approximated by a frozen pair beside it: the start of LoftQ.

    w0 = Q + B0 A0,   Q the packed weight,   B0 A0 the best approximation of W - Q of a rank      (eq. 6, T = 1)

In the paper the pair is where training starts. Here it is a part of the base: sites of unlike precision need unlike
repairs, while the pair that is trained and averaged is one for all and starts as it does without. The mean stays exact.

Li, Yu, Liang, He, Karampatziakis, Chen, Zhao, "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models",
ICLR 2024, arXiv:2310.08659.
"""

import torch
from torch import Tensor

from fedft.arithmetic.lowrank import LowRank
from fedft.randomness import philox

MORE = 8
"""Directions that are followed beyond the rank."""
TURNS = 4
"""Of the power iteration: what packing loses has a flat spectrum, of which fewer find less."""


def repair(lost: Tensor, rank: int, name: str) -> LowRank:
    """The best approximation of a matrix of a rank, nearly: of all that is not reached 2% more than the least is left.

    By power iteration on a random subspace: Halko, Martinsson, Tropp, SIAM Review 2011, algorithm 4.4. Equal matrices
    of one name give equal factors, on one type of machine bit for bit.

    Args:
        lost: float32 [out, in]; not modified.
        rank: of the pair, 1 or more; a matrix that has less gives fewer.
        name: of the module: its numbers are drawn from it.
    """
    follow = min(rank + MORE, *lost.shape)
    start = philox.uniform(0, philox.LORA_INIT, f"{name}.repair", (lost.shape[1], follow), lost.device)
    basis = torch.linalg.qr(lost @ (2 * start - 1))[0]
    for _ in range(TURNS):
        basis = torch.linalg.qr(lost @ torch.linalg.qr(lost.T @ basis)[0])[0]
    return LowRank((basis.T @ lost).cpu(), basis.cpu()).truncate(rank)
