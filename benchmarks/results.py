"""What a bench says, as values and as the file that keeps them: rows of figures, and the machine they were found on."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

KEPT = ("torch", "numpy", "numba", "transformers", "constriction")  # libraries whose versions say what was measured


@dataclass(frozen=True)
class Row:
    """What was found out about one way."""

    what: str
    way: str
    seconds: float = 0.0
    """Median CPU seconds of the whole; 0: not timed."""
    spread: float = 0.0
    """(third quartile - first) / median, over turns."""
    ratio: float | None = None
    """Times faster than the first way of this `what`, which is the published or the plain one."""
    of_limit: float | None = None
    """Times the seconds of this `what`'s limit, where it has one."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """What was counted beside: bits, bytes, errors, MB/s."""


@dataclass(frozen=True)
class Result:
    """What one bench says."""

    name: str
    title: str
    """One line: what is compared with what, and what the limit is."""
    settings: Mapping[str, Any]
    """Sizes."""
    rows: tuple[Row, ...]


def load() -> float:
    """How many processes wanted a core in the last minute; 0 where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def machine() -> dict[str, Any]:
    """What the figures are of: processor, cores, versions, date."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": cores,
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version for name in KEPT if (version := _version(name))},
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def as_json(results: Sequence[Result], loads: tuple[float, float]) -> dict[str, Any]:
    """Machine, load when it began and ended, and all that was found, made of what JSON holds."""
    benches = [{**asdict(result), "rows": [asdict(r) for r in result.rows]} for result in results]
    return {"machine": machine(), "load": list(loads), "benches": benches}


def from_json(data: Mapping[str, Any]) -> list[Result]:
    """The results that `as_json` was given."""
    return [Result(**{**bench, "rows": tuple(Row(**r) for r in bench["rows"])}) for bench in data["benches"]]
