"""What each client of a simulation trains on: virtual devices of `[clients.devices]`, dealt out by name from the seed.

A device says how many virtual seconds a turn takes on it:

    down / link + work / speed x (1 + jitter z) + up / link              z in [-1, 1) of the seed, client and round

Bytes are those of the messages as they are encoded, work is the arithmetic of the plan. Nothing here is measured: the
same run file and seed give the same seconds on every machine.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fedft import check
from fedft.config import DeviceClass, Devices, RunConfig
from fedft.contract import Forecast, Work
from fedft.errors import ConfigError
from fedft.randomness import philox
from fedft.simulations.availability import ALWAYS, Trace, traces
from fedft.update import Plan

UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Device:
    """One client's device."""

    flops: float
    """Floating-point operations in a virtual second."""
    up: float = math.inf
    """Bytes in a virtual second to the server."""
    down: float = math.inf
    """Bytes in a virtual second from the server."""
    trace: Trace = ALWAYS
    """When the device is on."""

    def answers_at(self, sent: float, *, down: int, work: float, up: int) -> float:
        """The virtual second at which an answer of `up` bytes is there, to a message of `down` bytes sent at `sent`.

        `work` are the floating-point operations between the two. The device works while it is on.
        """
        return self.trace.after(sent, down / self.down + work / self.flops + up / self.up)


def check_devices(config: RunConfig) -> None:
    """Raise ConfigError, in one line, where `[clients.devices]` makes no sense; nothing is made yet."""
    if (devices := config.clients.devices) is None:
        return
    where = "[clients.devices]"
    try:
        if not devices.classes:
            raise ValueError(f"{where} classes is [], wanted a table at least, as [{{flops = 2e9}}]")
        for n, of in enumerate(devices.classes):
            named = {
                "flops": of.flops,
                "share": of.share,
                "up": of.up,
                "down": of.down,
                "memory": memory_bytes(of.memory),
            }
            check.above(0, **{f"{where} classes[{n}] {key}": x for key, x in named.items() if x is not None})
        check.between(0, 1, **{f"{where} dropout": devices.dropout})
        check.between(0, math.nextafter(1, 0), **{f"{where} jitter": devices.jitter})
        if devices.period_s is not None:
            check.above(0, **{f"{where} period_s": devices.period_s})
    except ValueError as e:
        raise ConfigError(str(e)) from e
    if devices.period_s is not None and not devices.availability:
        raise ConfigError(f"{where} period_s = {devices.period_s:g}: there is no availability that it repeats")
    traces(devices.availability, devices.period_s)


def memory_bytes(said: int | str | None) -> int | None:
    """Bytes of a number, or of a text of a number and a unit. Raises ValueError for another text.

    >>> memory_bytes("2GiB"), memory_bytes("1.5 MB"), memory_bytes(7)
    (2147483648, 1500000, 7)
    """
    if not isinstance(said, str):
        return said
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", said.strip())
    if found is None or found[2] not in UNITS:
        raise ValueError(f"[clients.devices] memory is {check.quoted(said)}, wanted bytes, as 2000000000 or '2GiB'")
    return round(float(found[1]) * UNITS[found[2]])


def dealt(config: RunConfig, clients: Collection[str]) -> dict[str, Device]:
    """The device of each of all the run's clients, whoever of them is in this process; none without devices.

    Raises ConfigError where the file of traces cannot be read.
    """
    if (devices := config.clients.devices) is None:
        return {}
    found = traces(devices.availability, devices.period_s) or [ALWAYS]
    turn = {name: n for n, name in enumerate(_shuffled(clients, config.server.seed, "traces"))}
    return {
        name: Device(of.flops, of.up or math.inf, of.down or math.inf, found[turn[name] % len(found)])
        for name, of in _classes(devices, config.server.seed, clients).items()
    }


def profiles(config: RunConfig, clients: Collection[str]) -> dict[str, dict[str, float]]:
    """What each of all the run's clients says of its device when it enrols; nothing where they are hidden, or none."""
    devices = config.clients.devices
    if devices is None or devices.hidden:
        return {}
    found = {}
    for name, of in _classes(devices, config.server.seed, clients).items():
        said = {"memory": memory_bytes(of.memory), "flops": of.flops, "up": of.up, "down": of.down}
        found[name] = {key: float(x) for key, x in said.items() if x is not None}
    return found


def _classes(devices: Devices, seed: int, clients: Collection[str]) -> dict[str, DeviceClass]:
    """The class of each client. Classes have their shares to within one: 30, 40 and 10 of eighty are just these."""
    ends = _ends([of.share for of in devices.classes], len(clients))
    order = _shuffled(clients, seed, "devices")
    return {
        name: next(of for of, end in zip(devices.classes, ends, strict=True) if n < end) for n, name in enumerate(order)
    }


def _shuffled(names: Collection[str], seed: int, purpose: str) -> list[str]:
    return sorted(names, key=lambda name: (philox.derive(seed, purpose, name), name))


def _ends(shares: list[float], clients: int) -> list[int]:
    """Where each class ends among so many clients in a row; the last one at their number.

    >>> _ends([30, 40, 10], 80), _ends([1, 1], 3)
    ([30, 70, 80], [2, 3])
    """
    sums = [math.fsum(shares[: n + 1]) / math.fsum(shares) for n in range(len(shares))]
    return [*(math.floor(share * clients + 0.5) for share in sums[:-1]), clients]


def jitter(devices: Devices, seed: int, client: str, round: int) -> float:
    """By what a turn's seconds of arithmetic are multiplied: within 1 - `[clients.devices] jitter` and 1 + that."""
    return 1 + devices.jitter * (2 * _share(seed, "jitter", client, round) - 1)


def vanishes(devices: Devices, seed: int, client: str, round: int) -> bool:
    """Whether the client never answers in this round."""
    return _share(seed, "dropout", client, round) < devices.dropout


def _share(seed: int, purpose: str, client: str, round: int) -> float:
    """A number in [0, 1) that a purpose, client and round have."""
    return (philox.derive(seed, f"devices.{purpose}", client, round) >> 10) / 2**53


def operations(forecast: Callable[[Work], Forecast], plan: Plan) -> float:
    """Floating-point operations of a plan's local steps, by the formula that planners are told."""
    return forecast(
        Work(plan.shape, plan.steps, batch=plan.batch or None, bits=plan.bits or None, extra=plan.extra)
    ).flops
