"""When the server was last heard, for probes: a file of the site's state folder, whose time of change says it.

Nothing of a run depends on the file, and it is not fsynced.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

FILE = "contact"
EVERY_S, SOON_S = 10.0, 1.0  # between two looks, while there is contact and while there is none


def keep(state: Path, connected: Callable[[], bool], stop: threading.Event) -> None:
    """Until `stop` is set, bring the file of the state folder `state` up to date while `connected` says so."""
    while not stop.is_set():
        if heard := connected():
            with suppress(OSError):  # a full disk is told of where something is lost by it
                (state / FILE).touch()
        stop.wait(EVERY_S if heard else SOON_S)


def seconds_ago(state: Path) -> float | None:
    """Seconds since the server was last heard by a site with this state folder; None if it never was."""
    try:
        return max(0.0, time.time() - (state / FILE).stat().st_mtime)
    except OSError:
        return None
