"""Whether a model keeps rows apart that are packed into one sequence: tried once, before a run with `[local] packing`.

Attention keeps them apart where transformers makes its mask from positions that begin again (`fedft.data.packing`).
State that runs along the sequence (Mamba, hybrids) crosses from row to row, and so does attention whose code makes its
own mask: nothing would fail, and what is learned would be something else.
"""

from typing import Any

import torch

from fedft.data import batches, packing
from fedft.data.examples import IGNORED, Example
from fedft.errors import DataError, first_line
from fedft.models.device_arithmetic import rounding
from fedft.models.handle import ModelHandle
from fedft.models.load import Base

TOKENS = 40  # of both rows together: more than small models' windows, and a moment for large ones


def check_exact(handle: ModelHandle, base: Base, max_length: int) -> None:
    """Return None if two rows packed into one sequence have the logits that they have side by side.

    Args:
        handle: on the model; put in evaluation mode, and not changed otherwise.
        base: the model, for its ids and its name in the message.
        max_length: `[data] max_length`.
    Raises:
        DataError: they have other ones, or the model does not take positions.
    """
    total = min(TOKENS, max_length)
    lengths = [total - (short := max(1, 2 * total // 5)), short]
    rows = [Example([(7 * n * n + 3 * n + k) % base.ids for n in range(1, t + 1)], [IGNORED] * t, t)
            for k, t in enumerate(lengths)]  # fmt: skip
    handle.training(False)
    why = "rows of one sequence are not kept apart"
    try:
        with torch.no_grad():
            apart = _logits(handle, batches.collate(rows, base.pad_id))
            packed = _logits(handle, packing.batch_of(rows, [[0, 1]], base.pad_id))
        wanted = torch.cat([apart[k, :t] for k, t in enumerate(lengths)])
        if far(packed[0], wanted) <= rounding(next(iter(handle.base().values()))):
            return
    except Exception as e:  # a model that takes no positions may fail in any way
        why = f"{type(e).__name__}: {first_line(e)}"
    raise DataError(
        f"[local] packing: {base.source}, a {base.model.config.model_type} model, gives packed rows other numbers than "
        f"padded ones ({why}); packing = false would do"
    )


def far(x: torch.Tensor, y: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest of `y`; nan where either is not finite."""
    return float((x.double() - y.double()).abs().max() / y.double().abs().max())


def _logits(handle: ModelHandle, batch: dict[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = handle.forward({k: x for k, x in batch.items() if k != "labels"}).logits
    return logits
