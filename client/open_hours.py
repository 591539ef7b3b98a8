"""When a site works: `[site] hours`, windows of the week by a wall clock.

    "22:00-06:00, sat-sun"                      every night, and all of Saturday and Sunday
    "mon-fri 20:00-07:00, Europe/Berlin"        by the clock of that zone; without one, by this machine's

A window that ends before it begins goes on into the next day; its days are those on which it begins.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
DAY = 24 * 60  # minutes
_DAY = "|".join(DAYS)
WINDOW = re.compile(
    rf"(?:(?P<first>{_DAY})(?:\s*-\s*(?P<last>{_DAY}))?)?\s*"
    r"(?:(?P<from>\d?\d:\d\d)\s*-\s*(?P<to>\d?\d:\d\d))?",
    re.IGNORECASE | re.ASCII,
)
ZONE = re.compile(r"[A-Za-z]{3,}[A-Za-z0-9_+\-]*(?:/[A-Za-z0-9_+\-]+)*")
WANTED = "wanted windows such as 22:00-06:00, sat-sun or mon-fri 20:00-07:00, then perhaps a zone such as Europe/Berlin"


@dataclass(frozen=True)
class Window:
    """A stretch of some days of the week, in minutes of the day's wall clock."""

    days: frozenset[int]
    """On which it begins, 0 for Monday."""
    begins: int
    ends: int
    """Above `begins`; above DAY where the window goes on into the next day."""

    def holds(self, day: int, minute: int) -> bool:
        """Whether a minute of a day is inside."""
        return (day in self.days and self.begins <= minute < self.ends) or (
            (day - 1) % 7 in self.days and minute + DAY < self.ends
        )


@dataclass(frozen=True)
class Hours:
    """The windows in which a site works."""

    windows: tuple[Window, ...]
    zone: ZoneInfo | None
    """Whose clock; None: this machine's."""
    text: str
    """The windows as the site file says them, without the zone."""

    def closed(self, now: float) -> str:
        """When the site works again, as "22:00 (UTC+01:00)", with the day if that is more than a day away.

        "" while it works. `now`: seconds since 1970.
        """
        here = self._local(now)
        if any(w.holds(here.weekday(), here.hour * 60 + here.minute) for w in self.windows):
            return ""
        opens = min(self._begins(w, here) for w in self.windows)
        day = f"{DAYS[opens.weekday()]} " if opens.timestamp() - now >= DAY * 60 else ""
        return f"{day}{opens:%H:%M} ({offset(opens)})"

    def said(self, now: float) -> str:
        """The hours in words, whose clock they go by, and whether the site works now."""
        here = self._local(now)
        whose = self.zone.key if self.zone else "local time"
        until = self.closed(now)
        return (
            f"{self.text}, {whose} ({offset(here)}, now {here:%H:%M}): {f'closed until {until}' if until else 'open'}"
        )

    def _local(self, now: float) -> datetime:
        at = datetime.fromtimestamp(now, UTC)
        return at.astimezone(self.zone) if self.zone else at.astimezone()

    def _begins(self, window: Window, here: datetime) -> datetime:
        """When the window begins next."""
        today = here.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
        starts = (today + timedelta(days=n, minutes=window.begins) for n in range(8))
        after = here.replace(tzinfo=None)
        found = next(at for at in starts if at.weekday() in window.days and at > after)
        return found.replace(tzinfo=self.zone) if self.zone else found.astimezone()


def offset(at: datetime) -> str:
    """How far a time's zone is from UTC, as "UTC+01:00"."""
    digits = f"{at:%z}"
    return f"UTC{digits[:3]}:{digits[3:5]}"


def parsed(text: str) -> Hours:
    """The hours that a text says. Raises ValueError with one line that says what is wrong, and what is wanted."""
    parts = [part.strip() for part in text.split(",")]
    zone = None
    if len(parts) > 1 and ZONE.fullmatch(parts[-1]) and not WINDOW.fullmatch(parts[-1]):
        zone = _zone(parts.pop(), text)
    windows = []
    for part in parts:
        found = WINDOW.fullmatch(part)
        if not part or found is None:
            raise ValueError(f"[site] hours = {text!r}: {part!r} is no window; {WANTED}")
        try:
            windows.append(_window(found))
        except ValueError as e:
            raise ValueError(f"[site] hours = {text!r}: {part!r}: {e}") from e
    return Hours(tuple(windows), zone, ", ".join(parts))


def _zone(name: str, text: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError) as e:
        raise ValueError(f"[site] hours = {text!r}: this machine knows no zone {name!r}; {WANTED}") from e


def _window(found: re.Match[str]) -> Window:
    days = frozenset(range(7))
    if found["first"]:
        first, last = (DAYS.index(found[n].title()) for n in ("first", "last" if found["last"] else "first"))
        days = frozenset((first + n) % 7 for n in range((last - first) % 7 + 1))
    begins, ends = (_minute(found["from"]), _minute(found["to"])) if found["from"] else (0, DAY)
    if begins in (DAY, ends):
        raise ValueError("a window of no length; all of a day is 00:00-24:00")
    return Window(days, begins, ends if ends > begins else ends + DAY)


def _minute(text: str) -> int:
    hours, minutes = map(int, text.split(":"))
    if minutes > 59 or hours * 60 + minutes > DAY:
        raise ValueError(f"{text} is no time of a day")
    return hours * 60 + minutes
