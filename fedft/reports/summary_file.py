"""summary.json of a run's folder, which is there once the run has ended."""

import json
from pathlib import Path
from typing import Any

from fedft.errors import ConfigError

NAME = "summary.json"


def read(folder: Path) -> dict[str, Any]:
    """What it says; {} of a run that has not ended, or where it cannot be read."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def of_ended(folder: Path) -> dict[str, Any]:
    """The same; raises ConfigError where it says nothing."""
    if not (found := read(folder)):
        raise ConfigError(f"{folder}: no finished run, there is no {NAME}, or it cannot be read")
    return found
