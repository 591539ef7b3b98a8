"""Canaries: records with a secret that nobody could guess, of which a coin says whether they are trained on.

    plan = planned(config.audit, ["north", "south"])       the same for the same table and clients
    plan.of("north")                                       whose rows get which canary, and how often

Secrets and coins come from `[audit] seed`, so that a resumed run, and every process of it, has the same ones. They
protect nobody: what they are is known to whoever audits.
"""

import json
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import ConfigError
from fedft.privacy.tables import Audit
from fedft.randomness import philox

FILE = "audit-plan.json"
"""In the run folder, mode 0600: it has the secrets and the coins."""
VERSION = 1
DIGITS = 4
ALTERNATIVES = 255
"""Other secrets that each canary's is compared with: an exposure is at most log2 of one more, 8 bits."""


@dataclass(frozen=True)
class Canary:
    """One record with a secret, before it has the form of a run's records."""

    number: int
    client: str
    """Whose rows it is for."""
    repeats: int
    """How often it stands there, if it does."""
    planted: bool
    """What the coin said: whether it is trained on."""
    secret: str = field(repr=False)

    @property
    def carrier(self) -> str:
        """The text that the secret stands behind, unlike that of every other canary."""
        return f"The access code of clinic {self.number} is"


@dataclass(frozen=True)
class Plan:
    """All canaries of a run: those that are trained on, and those kept out to compare with."""

    seed: int
    canaries: tuple[Canary, ...] = ()

    def of(self, client: str) -> list[Canary]:
        """The canaries that are planted in the rows of a client, each as often as it stands there."""
        return [c for c in self.canaries if c.planted and c.client == client for _ in range(c.repeats)]

    def alternatives(self, canary: Canary) -> list[str]:
        """ALTERNATIVES secrets unlike each other and unlike the canary's own, always the same ones."""
        found: dict[str, None] = {}
        place = 0
        while len(found) < ALTERNATIVES:
            secret = _secret(self.seed, "audit alternative", canary.number, place)
            place += 1
            if secret != canary.secret:
                found[secret] = None
        return list(found)

    def to_dict(self) -> dict[str, Any]:
        """What `audit-plan.json` holds."""
        return {"version": VERSION, "seed": self.seed, "canaries": [asdict(c) for c in self.canaries]}


def planned(audit: Audit, clients: Sequence[str]) -> Plan:
    """The canaries of a run: number c is for client c mod N, with one of `repeats`, in or out by a coin of its own.

    Args:
        audit: the run's table.
        clients: names, in the order of the run.
    """

    def one(number: int) -> Canary:
        # repeats go on once all clients had one, or a client's number would decide how often
        repeats = audit.repeats[(number // len(clients)) % len(audit.repeats)]
        coin = bool(philox.derive(audit.seed, "audit coin", number) & 1)
        secret = _secret(audit.seed, "audit secret", number)
        return Canary(number, clients[number % len(clients)], repeats, coin, secret)

    return Plan(audit.seed, tuple(map(one, range(audit.canaries))))


def _secret(seed: int, purpose: str, *parts: int) -> str:
    """Digits with spaces between them, so that most tokenizers make a token of each."""
    return " ".join(f"{philox.derive(seed, purpose, *parts) % 10**DIGITS:0{DIGITS}d}")


def drawn_seed(folder: Path) -> int:
    """The seed of the plan in a folder, or where there is none one that nobody can know; `keep` makes it last."""
    there = read(folder)
    return there.seed if there is not None else secrets.randbits(53)  # which every reader of JSON holds exactly


def keep(folder: Path, plan: Plan) -> None:
    """Write the plan durably into a run's folder, readable by its owner only; one that is there already stays.

    Raises ConfigError where the one that is there is another: what was planted cannot be told any more.
    """
    path, text = folder / FILE, json.dumps(plan.to_dict(), indent=1) + "\n"
    if not path.exists():
        durable.write(path, text.encode(), mode=stat.S_IRUSR | stat.S_IWUSR)
    elif read(folder) != plan:
        raise ConfigError(
            f"{path}: is another plan than [audit] says now; it goes with the table and the fedft of before"
        )


def read(folder: Path) -> Plan | None:
    """The plan in a run's folder; None where there is none. Raises ConfigError for a file of another form."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["version"] != VERSION:
            raise ValueError
        return Plan(int(found["seed"]), tuple(Canary(**c) for c in found["canaries"]))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path}: is no plan of an audit of this version") from e
