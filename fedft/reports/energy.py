"""Energy of a run, estimated: seconds of this machine at work, times watts that are assumed, not measured.

What the machine draws at rest, cooling, and radios and routers that carry the traffic are not in it.
"""

from collections.abc import Iterable

from fedft.errors import ConfigError

ASSUMED = {"cpu": 65.0, "cuda": 350.0}
"""Watts by kind of device where nobody says others: a desktop processor, a GPU of a data centre, at work."""


def watts(devices: Iterable[str], said: float | None = None) -> float:
    """What a machine with these devices, as `[model] device` has them, is assumed to draw; `said` wins.

    >>> watts(["cpu", "cuda:1"]), watts(["cpu"], 30.0)
    (350.0, 30.0)

    Raises ConfigError for watts that are not above 0.
    """
    if said is not None:
        if not 0 < said < float("inf"):
            raise ConfigError(f"--watts {said:g}: wanted a number above 0")
        return said
    return max((ASSUMED.get(d.partition(":")[0], ASSUMED["cpu"]) for d in devices), default=ASSUMED["cpu"])


def watt_hours(work_s: float, watts: float) -> float:
    """The energy of so many seconds of work, in Wh.

    >>> watt_hours(7200, 65)
    130.0
    """
    return work_s * watts / 3600


def assumption(watts: float) -> str:
    """What the estimate assumes, as a sentence."""
    return (
        f"Energy is an estimate: seconds of training and aggregation of this machine, for all clients together, times "
        f"{watts:g} W that are assumed, not measured (--watts says others)."
    )
