"""Which base an exported adapter needs: `base.json` beside it, and what differs where it is used on another.

base           name or path, as where it was exported
base_digest    SHA-256 of the base's weights as stored, see `stored_weights`
dtype, bits    of the base's weights in the run; base_bits or packed_by, where they were packed
repair_rank    of the pairs that repair packed weights; they are in the adapter
clients        how many clients had the base in how many bits, where some had another precision than the run
lower_rank     by `fedft export --rank`: what was lost, see `lower_rank.lowered`
epsilon        what was spent of privacy, at `delta` under mode `privacy`; null where there is none, and `epsilon_why`
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.config import Model
from fedft.models import adapter_folder, export, stored_quantization
from fedft.models.load import Base

log = logging.getLogger(__name__)

NAME = "base.json"


def write(
    folder: Path, base: Base, m: Model, clients: Mapping[str, int], spent: Mapping[str, Any],
    lower: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write what an adapter in `folder` needs to have; other keys of a note that is there already stay.

    Args:
        folder: of the adapter; it is there.
        base: that it was trained on, or with adapters in it.
        m: of the run, as resolved.
        clients: how many had the base in how many bits; empty: all as the run says.
        spent: of privacy, see `fedft.reports.spent_privacy.spent`; empty: nobody knows.
        lower: what was lost by a lower rank, see `lower_rank.lowered`; None: nothing.
    """
    needed = {"base": export.base_name(base), "base_digest": base.lowest or base.digest}
    said = read(folder) | dict(spent) | needed | {"dtype": m.dtype, "bits": m.bits}
    if m.base_bits is not None:
        said["base_bits"] = m.base_bits
    if base.repair_rank:
        said["repair_rank"] = base.repair_rank
    if method := stored_quantization.method_of(base.model.config):
        said["packed_by"] = method
    if clients:
        said["clients"] = dict(clients)
    if lower:
        said["lower_rank"] = dict(lower)
    durable.write(folder / NAME, (json.dumps(said, indent=2, sort_keys=True) + "\n").encode())


def differences(folder: Path, m: Model, base: Base) -> list[str]:
    """A sentence for each way in which a base is not the one that the adapter in `folder` was trained on.

    `m` says the base's precision. A folder without a note says nothing.
    """
    said = read(folder)
    try:
        digest, dtype, bits = str(said["base_digest"]), str(said["dtype"]), int(said["bits"])
        clients = {str(b): int(n) for b, n in said.get("clients", {}).items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    found, own = [], base.lowest or base.digest
    if digest != own:
        found.append(f"it was trained on other weights of the base (digest {digest[:12]}) than these ({own[:12]})")
    if bits != m.bits:
        here = precision(m.dtype, m.bits)
        found.append(f"it was trained on a base in {precision(dtype, bits)}, this one is in {here}: its loss differs")
    if clients.keys() - {str(m.bits)}:
        found.append(f"its clients had the base in {numbers(clients)} bits, this one is in {m.bits}")
    return found


def repaired(folder: Path) -> bool:
    """Whether the adapter in `folder` holds what repairs the packed weights of its base."""
    try:
        return bool(json.loads((folder / NAME).read_text(encoding="utf-8")).get("repair_rank"))
    except (OSError, ValueError, AttributeError):
        return False


def say(m: Model, base: Base) -> None:
    """Warn where `[model] id` is the folder of an adapter that was trained on another base, or precision of it."""
    for folder in adapter_folder.chain(m.id)[:-1]:
        for line in differences(Path(folder).expanduser(), m, base):
            log.warning("[model] id: the adapter in %s: %s", folder, line)


def read(folder: Path) -> dict[str, Any]:
    """The note in a folder; {} where there is none that can be read."""
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def precision(dtype: str, bits: int) -> str:
    """As "bfloat16" or "4 bits"."""
    return dtype if bits >= 16 else f"{bits} bits"


def numbers(clients: Mapping[str, int]) -> str:
    """As "4 (1 of 3) and 32 (2 of 3)"."""
    return " and ".join(f"{bits} ({n} of {sum(clients.values())})" for bits, n in clients.items())
