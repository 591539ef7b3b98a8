"""Made-up rows of unlike length, of which some tokens are learned, and pairs of them."""

import torch

from fedft.data.examples import IGNORED, Example
from fedft.data.preferences import Pair


def rows(n: int = 8, seed: int = 3) -> list[Example]:
    """Rows of 3 to 12 tokens, of which the first one to three are not learned; one row learns nothing."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (n,), generator=g).tolist()
    found = []
    for k, length in enumerate(lengths):
        ids = torch.randint(1, 20, (length,), generator=g).tolist()
        given = length if k == 2 else 1 + k % 3
        found.append(Example(ids, [IGNORED] * given + ids[given:], given))
    return found


def pairs(n: int = 8) -> list[Pair]:
    learned = [r for r in rows(2 * n + 1, seed=5) if any(x != IGNORED for x in r.labels)]
    return [Pair(a, b) for a, b in zip(learned[:n], learned[n:], strict=False)]
