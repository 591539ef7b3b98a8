"""What a model draws by itself while it learns, as dropout does: from a seed and nothing that was drawn before."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def from_seed(seed: int) -> Iterator[None]:
    """Inside, torch's generators begin at `seed`, those of CUDA devices too; the CPU's is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():  # torch.manual_seed looks for every kind of device, present or not
            torch.cuda.manual_seed_all(seed)
        yield
