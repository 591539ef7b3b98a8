"""At which calls, writes or events a sweep of kills strikes: at a sample of them, or at each, which takes ten minutes.

FEDFT_EVERY_KILL=1 pytest tests -k "kill or crash" -n 2        at each
"""

import os

EACH = bool(os.environ.get("FEDFT_EVERY_KILL"))


def sample(first: int, step: int) -> tuple[int, int]:
    """The first one and the distance to the next: as given, or (1, 1)."""
    return (1, 1) if EACH else (first, step)
