"""A site's few words about itself: how far it is with a letter, or why it refuses one.

The words are signed, so they are the site's; beyond that they are not trusted. Bounded, and safe to log and show.
"""

import json
import re
from typing import Any

from fedft.carriers.interface import Refused, refused

WAITING = re.compile(
    r"waiting for approval|"
    r"outside its hours until ((Mon|Tue|Wed|Thu|Fri|Sat|Sun) )?[0-2][0-9]:[0-5][0-9] \(UTC[+-][0-9]{2}:[0-9]{2}\)"
)
"""What a site may say that it waits for: its operator, or the hour."""
DOING = ("receiving", "loading", "queued", "working", "training", "ready", "unknown")
"""What else a site may say that it is doing. `receiving`: the letter may be what is on its way in; `ready`: a long
answer waits to be fetched; `unknown`: no such letter here."""
MAX_BYTES = 4096  # of a report, which is parsed as JSON
MAX_NUMBER = 1e9  # of steps and seconds: they are shown in a line
NUMBERS = ("step", "steps", "left_s")


def progress(payload: bytes) -> tuple[str, dict[str, float]]:
    """(a word of DOING, what WAITING says, or "?", those of NUMBERS that the site gives) of a report; never raises."""
    words = _words(payload)
    doing = words.get("doing")
    known = isinstance(doing, str) and (doing in DOING or WAITING.fullmatch(doing))
    return str(doing) if known else "?", {k: words[k] for k in NUMBERS if _plain(words.get(k))}


def refusal(payload: bytes) -> Refused:
    """Why a site refuses, in a short printable line. Raises RejectedUpdate for a code that is no client's."""
    words = _words(payload)
    return refused(words.get("code"), words.get("reason"))


def _plain(x: object) -> bool:
    return type(x) in (int, float) and 0 <= x <= MAX_NUMBER  # type: ignore[operator]


def _words(payload: bytes) -> dict[str, Any]:
    """The JSON object in a report; {} if there is none."""
    try:
        words = json.loads(payload) if len(payload) <= MAX_BYTES else {}
    except (ValueError, RecursionError):
        return {}
    return words if isinstance(words, dict) else {}
