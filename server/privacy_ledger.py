"""The durable side of a run's noise: what was charged, the key of a release, and the coins of a round.

    state/ledger.fedft             SHA-256 of the rest, then lines of JSON: a header, then each charge
    state/noise-<round>.key        SHA-256 of the rest, then JSON: the key, and the digest of the set that it is for
    state/drawn-<round>.fedft      SHA-256 of the rest, then JSON: who takes part in a round by secret coins

The order of a release, each step on the disk before the next:

    1. the set of updates is fixed      2. its key      3. its charge      4. sum, noise, the new state
    5. the key is erased

So a run that is killed in between makes the same release again, with the same noise, for the charge that stands; and
whatever was released was charged before. With another set there is another key and another charge: the same noise over
two sets would tell their difference. Whoever has a copy of `state/` from between 2 and 5 can subtract the noise.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from fedft import durable
from fedft.errors import StateDamaged
from fedft.privacy import spent_budget
from fedft.privacy.keyed_stream import Stream, new_key, seeded_key
from fedft.privacy.spent_budget import TRAINING, Charge, Header, Ledger
from fedft.server.guard import BudgetSpent


class Toss(NamedTuple):
    """What the coins of one round have said."""

    name: str
    """Tells it from any other."""
    q: float
    """Probability of each coin."""
    asked: list[str]
    """Who takes part, in roster order."""


class PrivacyLedger:
    """Ledger, keys and coins of one run in its state folder. Used by one thread of one process."""

    def __init__(self, folder: Path, seed: int | None) -> None:
        """Nothing is read or written.

        Args:
            folder: of the run's state.
            seed: of the run, from which keys and coins are made that hide nothing; None: they are the operating
                system's.
        """
        self._folder, self._seed = folder, seed
        self._path = folder / "ledger.fedft"
        self._ledger: Ledger | None = None

    @property
    def ledger(self) -> Ledger:
        """What was charged until now; `open` comes first."""
        assert self._ledger is not None
        return self._ledger

    def open(self, version: int, header: Callable[[], Header]) -> None:
        """Read the ledger of a run whose newest state has this version; begin it with `header` where it is at 0.

        Raises StateDamaged where it does not verify, or has fewer rounds than have led to the state.
        """
        if (body := durable.verified(self._path)) is None:
            if version or self._path.exists():
                why = "cannot be read or was altered" if self._path.exists() else "is missing"
                raise StateDamaged(f"{self._path}: {why}; without it nobody knows what was spent, restore it")
            self._write(Ledger(header()))
            return
        try:
            self._ledger = spent_budget.read(body)
        except (ValueError, TypeError, KeyError) as e:
            raise StateDamaged(f"{self._path}: is no ledger of this version of fedft ({e!r:.80})") from e
        if missing := set(range(version)) - self.ledger.rounds():
            raise StateDamaged(f"{self._path}: round {min(missing)} led to the state and was never charged; restore it")

    def is_fixed(self, name: str, of: str) -> bool:
        """Whether the key of the release of this name is on the disk, for the set of this digest."""
        return (found := self._key(name)) is not None and found[1] == of

    def begun(self, name: str) -> bool:
        """Whether there is a key of the release of this name."""
        return self._key(name) is not None

    def release(self, name: str, of: str, salt: str, charge: Charge, most: float | None) -> Stream:
        """The noise of a release, once its key and its charge are durable. The same set again has the same noise.

        Args:
            name: of the release, as its key's file says.
            of: digest of the set that is summed, 64 hexadecimal digits.
            salt: what the noise depends on besides the key, likewise.
            charge: for it, without set and key.
            most: epsilon that all charges may come to; None: any.
        Raises:
            BudgetSpent: this charge would be above. Nothing was charged.
        """
        found = self._key(name)
        key = found[0] if found and found[1] == of else self._fresh(name)
        charge = replace(charge, set=of, key=hashlib.sha256(b"fedft-key\0" + key).hexdigest()[:16])
        there = any((c.round, c.of, c.set, c.key) == (charge.round, charge.of, of, charge.key)
                    for c in self.ledger.charges)  # fmt: skip
        if not there and most is not None and self.ledger.epsilon([charge]) > most:
            raise BudgetSpent(f"{name}: another charge would cost more than epsilon {most:g}")
        if not found or found[1] != of:
            durable.commit(self._key_path(name), json.dumps({"key": key.hex(), "set": of}).encode())
        if not there:
            self._write(self.ledger.with_charge(charge))
        return Stream(key, bytes.fromhex(salt))

    def drawn(self, round: int, members: tuple[str, ...], q: float) -> Toss:
        """Who takes part in a round: each member with probability `q`, by a coin of its own.

        Durable when returned, and never tossed again: whoever takes part was drawn at the first call of the round.
        """
        path = self._folder / f"drawn-{round:08d}.fedft"
        if (body := durable.verified(path)) is None:
            if path.exists():
                raise StateDamaged(f"{path}: cannot be read or was altered; another draw would not be the first one")
            toss = Stream(self._fresh(f"coins-{round}"), hashlib.sha256(str(round).encode()).digest())
            coins = toss.uniforms("coins", "", len(members)).tolist()
            name = new_key().hex()[:16] if self._seed is None else str(round)
            asked = [c for c, u in zip(members, coins, strict=True) if u < q]
            body = json.dumps([name, q, asked]).encode()
            durable.commit(path, body)
        return Toss(*json.loads(body))

    def erase(self, version: int) -> None:
        """Erase the keys and the draws of the rounds that led to this version of the state, which is durable."""
        for path in [*self._folder.glob("noise-*.key"), *self._folder.glob("drawn-*.fedft")]:
            if int(path.stem.split("-")[1]) < version:
                path.unlink()

    def forget(self, name: str) -> None:
        """Erase the key of a release: what is summed next has another one."""
        self._key_path(name).unlink(missing_ok=True)

    def _fresh(self, name: str) -> bytes:
        """A key that nobody has; of a seeded run, its own of this name."""
        return new_key() if self._seed is None else seeded_key(self._seed, "noise", name)

    def _key(self, name: str) -> tuple[bytes, str] | None:
        """(key, digest of its set) of the release of this name; None where there is none that verifies."""
        if (body := durable.verified(self._key_path(name))) is None:
            return None
        found: dict[str, Any] = json.loads(body)
        return bytes.fromhex(found["key"]), found["set"]

    def _key_path(self, name: str) -> Path:
        return self._folder / f"noise-{name}.key"

    def _write(self, ledger: Ledger) -> None:
        durable.commit(self._path, ledger.to_bytes())
        self._ledger = ledger


def name_of(round: int, of: str = TRAINING) -> str:
    """The name of a release: the round, and what is summed unless it is updates.

    >>> name_of(3), name_of(4, "evaluation")
    ('00000003', '00000004-evaluation')
    """
    return f"{round:08d}" if of == TRAINING else f"{round:08d}-{of}"


def digest_of(round: int, of: str, parts: Mapping[str, str]) -> str:
    """SHA-256 of a set, 64 hexadecimal digits: the round, what is summed, and the digest of each client's part."""
    return hashlib.sha256(json.dumps([round, of, list(parts.items())]).encode()).hexdigest()
