"""A letter on a network that loses things: when it goes out, when its site is asked about it, when it goes out again.

    not pushed -> pushed -> ready -> fetching      ready: the site has a long answer and waits to be asked for it
         ^__________|_________|__________|         lost: it goes out again, after a while that doubles each time

Nothing is sent here. All times are seconds by the clock of the post, which owns the letter and is its only user.
"""

import logging
import math
from dataclasses import dataclass

from fedft.carriers.interface import Letter
from fedft.server.site_reports import WAITING

log = logging.getLogger(__name__)

STATUS_S = 5.0  # silence after which a site is asked what it is doing: it may have been killed
PLAN_BYTES_S = 1_000_000  # at which a plan is taken to arrive: until then a site cannot know of it
# before a lost letter goes out again, the first time and at most: a site that is ill is not flooded
AGAIN_S = (1.0, 60.0)
FETCH_S, FETCH_BYTES_S = 60.0, 100_000  # after so long, and slower than this, a long answer's place goes to the next
READY_S = 1.0  # before a site that is asked for its answer, and only says that it has one, is asked again


@dataclass
class OpenLetter:
    """A letter that waits for its answer."""

    letter: Letter
    digest: bytes
    """SHA-256 of its payload, by which the answer names the letter."""
    size: int
    """Bytes of its payload."""
    heard: float
    """When its site last said anything about the letter; at first, when the post was given it."""
    reached: bool = False
    """Whether the site has said anything about the letter."""
    pushed: bool = False
    """Whether the letter is out, as far as is known."""
    ready: bool = False
    """Whether the site has a long answer and waits to be asked for it."""
    fetching: bool = False
    """Whether the site has been asked for its long answer, which takes one of the post's places."""
    fetched_at: float = -math.inf
    """When the long answer was last asked for."""
    not_before: float = 0.0
    """Until when nothing is sent about the letter."""
    tries: int = 0
    """How often the letter was lost, up to 10."""
    waits: str = ""
    """What its site waits for before it deals with the letter, as it says."""
    forgeries: int = 0
    """Answers to the letter that are nobody's."""

    def sent(self, now: float) -> None:
        """The letter has gone out."""
        self.pushed, self.heard = True, now

    def hear(self, now: float) -> None:
        """The site has said something about the letter, signed."""
        self.heard, self.reached = now, True

    def silent(self, now: float) -> bool:
        """Whether the site should have said something by now; it is given the time that the letter takes to arrive."""
        return not self.ready and now > self.heard + STATUS_S + (0 if self.reached else self.size / PLAN_BYTES_S)

    def ask_later(self, now: float) -> None:
        """The site is being asked what it is doing: no other question for a while."""
        self.not_before = now + STATUS_S

    def fetch(self, now: float) -> None:
        """The site is being asked for its long answer."""
        self.fetching, self.fetched_at = True, now

    def slow(self, now: float) -> bool:
        """Whether the long answer takes longer than its size excuses: others wait for its place."""
        return now >= self.fetched_at + FETCH_S + self.letter.max_bytes / FETCH_BYTES_S

    def report(self, doing: str, now: float) -> bool:
        """Take what the site says it is doing, as `site_reports.progress` gives it; whether that is news.

        That it waits for the same still, perhaps for hours, is none.
        """
        before, self.waits = self.waits, doing if WAITING.fullmatch(doing) else ""
        if doing == "unknown":  # it restarted after the letter had reached it
            self.lose(now, "does not know of the letter")
        if doing == "ready":
            self.not_before = now + READY_S * self.fetching
            self.ready, self.fetching = True, False
        return not self.waits or self.waits != before

    def lose(self, now: float, why: str) -> None:
        """The letter or its answer is lost: the letter goes out once more, in a while."""
        log.debug("%s: %s", self.letter.client, why)
        self.not_before = now + min(AGAIN_S[0] * 2**self.tries, AGAIN_S[1])
        self.tries = min(self.tries + 1, 10)
        self.void()

    def void(self) -> None:
        """Nothing about the letter is on its way any more: it goes out anew, with no fault of its site's."""
        self.pushed = self.ready = self.fetching = False
