"""What a run has spent of its privacy: a ledger of charges, and what they cost together.

A site is named by a charge if it was asked in that round, which everybody can know: it pays for those rounds, whether
it answered or not. With a cohort of secret coins nobody is named, and everybody pays for each with the probability of
the coin. Gaussian releases that one site paid for are together one of z = (sum z_i^-2)^(-1/2), exactly; so are those
made from one toss of the coins, of which a round that is made twice has but one.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fedft.privacy import accountant
from fedft.privacy.accountant import Release
from fedft.privacy.tables import SEEDED

Event = Literal["gaussian", "poisson"]
TRAINING = "training"


@dataclass(frozen=True)
class Header:
    """The first line of a ledger: what holds for the whole run."""

    mode: str
    clip: float
    """C of the first round."""
    noise_multiplier: float
    """z, also where it was computed from an epsilon."""
    delta: float
    clients: int
    """N: members when the run began."""
    expected: float
    """How many parts a sum is divided by, at that number of members."""
    cohort: str
    noise: str
    """"os", or "seeded": then epsilon is none."""


@dataclass(frozen=True)
class Charge:
    """One release: a noisy sum that may have left the server."""

    round: int
    event: Event
    z: float
    """Noise multiplier."""
    of: str = TRAINING
    """What was summed: updates, or a measure of an evaluation."""
    attempt: int = 0
    """How many charges of the same round and kind came before."""
    q: float = 1.0
    """Probability that a site takes part, where coins decide."""
    asked: tuple[str, ...] = ()
    """Who may be in the sum; nobody where coins decide."""
    draw: str = ""
    """Tells one toss of the coins from another."""
    deviation: float = 0.0
    """Standard deviation of the noise on the sum, in its own unit: z C of the round's clip."""
    set: str = ""
    """Digest of what was summed."""
    key: str = ""
    """Digest of the noise's key: the same set with another key is another release."""


@dataclass(frozen=True)
class Ledger:
    """A header and the charges so far, in the order in which they were made."""

    header: Header
    charges: tuple[Charge, ...] = ()

    def with_charge(self, charge: Charge) -> "Ledger":
        """The ledger with one more charge, numbered behind those of its round and kind."""
        before = sum((c.round, c.of) == (charge.round, charge.of) for c in self.charges)
        return replace(self, charges=(*self.charges, replace(charge, attempt=before)))

    def rounds(self) -> set[int]:
        """The rounds whose updates were charged."""
        return {c.round for c in self.charges if c.of == TRAINING}

    def epsilon(self, more: Iterable[Charge] = ()) -> float:
        """Epsilon at the header's delta of all charges and of these `more`, for the site that pays for most."""
        return epsilon([*self.charges, *more], self.header.delta)

    def to_bytes(self) -> bytes:
        """Lines of JSON: the header, then a line for each charge."""
        charges = ({k: x for k, x in asdict(c).items() if x not in ("", ())} for c in self.charges)
        lines = [asdict(self.header), *charges]
        return "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()


def read(body: bytes) -> Ledger:
    """The ledger of these bytes. Raises ValueError or TypeError for bytes that `to_bytes` has not made."""
    header, *charges = (json.loads(line) for line in body.splitlines())
    return Ledger(Header(**header), tuple(Charge(**{**c, "asked": tuple(c.get("asked", ()))}) for c in charges))


def releases(charges: Iterable[Charge]) -> list[Release]:
    """What the charges were for the site that pays for most of them, merged where that changes nothing."""
    by_site: dict[str, list[float]] = {}
    by_draw: dict[tuple[str, float], list[float]] = {}
    for c in charges:
        if c.event == "poisson":
            by_draw.setdefault((c.draw or str(c.round), c.q), []).append(c.z)
        for site in c.asked if c.event == "gaussian" else ():
            by_site.setdefault(site, []).append(c.z)
    worst = min(map(_together, by_site.values()), default=math.inf)
    certain = [Release(worst)] if worst < math.inf else []
    return certain + [Release(_together(z), q) for (_, q), z in by_draw.items()]


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon at `delta` of these charges together, for the site that pays for most of them; 0.0 of none."""
    return accountant.epsilon(releases(charges), delta)


def noise_for(charges: Sequence[Charge], target: float, delta: float) -> float:
    """The smallest z, to 1 %, with which the charges, each at z times its own, cost at most `target`."""
    return accountant.noise_for(lambda z: releases(replace(c, z=z * c.z) for c in charges), target, delta)


def fitting(spent: Ledger, more: Sequence[Charge], most: float) -> int:
    """How many of the charges `more`, in their order, fit an epsilon of `most` behind those of the ledger."""
    return accountant.fitting(lambda count: spent.epsilon(more[:count]), len(more), most)


def _together(z: Sequence[float]) -> float:
    """The noise multiplier of one Gaussian release that is as much as all of these."""
    return z[0] if len(z) == 1 else math.fsum(x**-2 for x in z) ** -0.5


def plain(ledger: Ledger) -> dict[str, Any]:
    """What a line of metrics.jsonl says of the budget: epsilon, and why there is none of seeded noise; delta."""
    if ledger.header.noise == "seeded":
        return {"epsilon": None, "epsilon_why": SEEDED, "delta": ledger.header.delta}
    return {"epsilon": ledger.epsilon(), "delta": ledger.header.delta}
