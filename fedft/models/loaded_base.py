"""The base model that a `[model]` table names, as floats or packed, as the table says, below any adapters."""

import json
import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

from fedft.config import Model
from fedft.errors import DataError, first_line
from fedft.models import adapter_folder, export, quantized_base
from fedft.models.load import Base

log = logging.getLogger(__name__)


def load(m: Model, **how: Any) -> Base:
    """The base of the table `m`, loaded by `adapter_folder.load`, which `how` is for; errors as there.

    Warns where an adapter that it begins with was trained on a base of other bits; DataError where one holds the repair
    of its base already, and the table wants a repair: two would be as wrong as none.
    """
    _check_adapters(m)
    if m.base_bits is None:
        return adapter_folder.load(m.id, m.task, **how)
    rank = m.repair_rank or 0
    pack = partial(quantized_base.packed, bits=m.base_bits, modules_to_save=m.modules_to_save, repair_rank=rank)
    base = adapter_folder.load(m.id, m.task, prepare=pack, **how)
    return quantized_base.below_adapters(base, m.base_bits, rank)


def _check_adapters(m: Model) -> None:
    for folder in adapter_folder.chain(m.id)[:-1]:
        path = Path(os.path.expanduser(folder)) / export.PACKED
        try:
            said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            theirs, repaired = said.get("base_bits"), bool(said.get("repair_rank"))
        except (OSError, ValueError, AttributeError) as e:
            raise DataError(f"[model] id: cannot read {path}: {first_line(e)}") from e
        if repaired and m.repair_rank:
            raise DataError(
                f"[model] repair_rank: the adapter in {folder!r} holds the repair of its base already; leave it out"
            )
        if theirs is not None and theirs != m.base_bits:
            here = "floats" if m.base_bits is None else f"{m.base_bits} bits"
            log.warning(
                "[model] base_bits: the adapter in %r was trained on a base of %s bits, and here it is of %s",
                folder, theirs, here,
            )  # fmt: skip
