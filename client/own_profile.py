"""What a site says of itself, as far as `[profile] share` of its file allows: planners at the server go by it.

    memory    when it enrols, "memory": [policy] max_memory_mib in bytes, where that is said
    link      when it enrols, "up" and "down": [site] max_mbit_s in bytes per second, where that is said
    speed     with every update, "seconds.train" and "memory.peak": how long the local steps took, and the most bytes
              that the process has had on its device since it began

What is not shared is learned from how long rounds take, or taken to be as usual.
"""

import time
from collections.abc import Callable

import torch

from fedft.carriers.stream.pace import MBIT
from fedft.client.site_settings import SiteConfig
from fedft.models import free_memory

TellTurn = Callable[[], dict[str, float]]
"""Called behind the local steps that began when it was made: metrics of the turn."""


def of(site: SiteConfig) -> dict[str, float]:
    """What the site says of itself when it enrols, by the names of `fedft.contract.Member.profile`."""
    share, found = site.profile.share, {}
    if "memory" in share and (most := site.policy.max_memory_mib) is not None:
        found["memory"] = float(most * 2**20)
    if "link" in share and (rate := site.site.max_mbit_s) is not None:
        found |= dict.fromkeys(("up", "down"), rate * MBIT)
    return found


def begun(device: torch.device) -> TellTurn:
    """What tells of local steps that begin now."""
    started = time.monotonic()

    def told() -> dict[str, float]:
        peak = free_memory.peak_bytes(device)
        return {"seconds.train": time.monotonic() - started, **({} if peak is None else {"memory.peak": float(peak)})}

    return told
