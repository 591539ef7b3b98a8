"""One tensor of many clients, some entries of all of them at a time, so that memory does not grow with the clients."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

HELD = 2**26  # numbers of all clients together that are in memory at once: 256 MiB


def of_clients(reads: Sequence[Callable[[], Tensor]]) -> Iterator[tuple[slice, Tensor]]:
    """(which entries of the flat tensor, float32 [clients, so many entries]), from the first entries to the last.

    Where all clients' entries are more than HELD numbers, each client's tensor is read once for every block.

    Args:
        reads: of each client, makes its tensor; all have one shape.
    Raises:
        ValueError: shapes differ.
    """
    first = reads[0]()
    shape, at, width = first.shape, 0, max(1, HELD // len(reads))
    while at < first.numel():
        here = slice(at, min(at + width, first.numel()))
        rows = torch.empty(len(reads), here.stop - at)
        for k, read in enumerate(reads):
            x = read() if k else first
            if x.shape != shape:
                raise ValueError(f"a client's tensor has shape {tuple(x.shape)}, the first one's {tuple(shape)}")
            rows[k] = x.reshape(-1)[here]
        yield here, rows
        at = here.stop
