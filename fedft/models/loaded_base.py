"""The base model that a `[model]` table names, as floats or packed, as the table says, below any adapters."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedft import quickstart
from fedft.config import Model
from fedft.errors import DataError
from fedft.models import adapter_folder, base_note, dtypes, quantized_base, tasks
from fedft.models.load import Base, device_of

log = logging.getLogger(__name__)


def load(m: Model, **how: Any) -> Base:
    """The base of the table `m` on its device, loaded by `adapter_folder.load`, which `how` is for; errors as there.

    A base that is packed is read on the CPU in the dtype of its file, where that is possible without a copy of it, and
    each matrix goes to the device to be packed: neither holds all of it in floats.

    DataError where an adapter that it begins with holds the repair of its base already, and the table wants a repair:
    two would be as wrong as none.
    """
    _check_adapters(m)
    if m.base_bits is None:
        if m.repair_rank is not None:
            log.warning("[model] repair_rank = %d has no effect: base_bits packs no weights here", m.repair_rank)
        return adapter_folder.load(m.id, m.task, dtype=m.dtype, device=m.device, **how)
    device, rank, read_as = device_of(m.device), m.repair_rank or 0, _read_as(m)
    pack = partial(
        quantized_base.packed, bits=m.base_bits, modules_to_save=m.modules_to_save, repair_rank=rank, device=device,
        dtype=None if read_as == m.dtype else getattr(torch, m.dtype),
    )  # fmt: skip
    base = adapter_folder.load(m.id, m.task, prepare=pack, dtype=read_as, **how)
    return quantized_base.below_adapters(base, m.base_bits, rank)


def _read_as(m: Model) -> str:
    """The dtype that weights are read in before they are packed: half precision as float32 would be a copy of all.

    A head that is drawn is drawn in float32.
    """
    own = dtypes.of_file(m.id) if m.id != quickstart.BASE and m.dtype == "float32" else None
    if own in (torch.bfloat16, torch.float16) and tasks.of(m.task).generates:
        return str(own).removeprefix("torch.")
    return m.dtype


def _check_adapters(m: Model) -> None:
    for folder in adapter_folder.chain(m.id)[:-1]:
        if (Path(os.path.expanduser(folder)) / adapter_folder.SLICES).is_file():
            raise DataError(
                f"[model] id: the adapter in {folder!r} is of a pruned model, and on its whole base it would be "
                f"another one; export the run with --merged and give that folder"
            )
    for folder in adapter_folder.chain(m.id)[:-1] if m.repair_rank else ():
        if base_note.repaired(Path(os.path.expanduser(folder))):
            raise DataError(
                f"[model] repair_rank: the adapter in {folder!r} holds the repair of its base already; leave it out"
            )
