"""One client's part in privacy: the key and the terms of its noise, what each turn costs, and what it does not say.

    own = OwnPrivacy(Ledger(folder), keys)
    own.begin(name, job, config, rows)         as the client joins a run: key and terms are on the disk
    turn = own.guarded(turn, rows)             with what its noise goes by
    own.charge(turn)                           before its local steps: durable, within the site's budget

Noise is a function of the key and of everything that the client's result depends on (`Stream.salt`): a turn that is
taken again after a crash gives the same bytes and no new charge, and no two different results ever share noise. The
number of an attempt is no part of that: what is sent in it is the same. Of a share of a secure sum's noise the slot is
one: see `fedft.privacy.secure_sum.noisy_integers`.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from fedft.client import noise_key
from fedft.client.disk import work_of
from fedft.client.privacy_ledger import SEEDED, Charge, Ledger, Terms
from fedft.client.site_settings import SiteConfig
from fedft.config import LOCAL, RunConfig
from fedft.contract import Private, Turn
from fedft.errors import ConfigError, PlanRefused
from fedft.privacy import accountant
from fedft.privacy.keyed_stream import Stream, new_key, seeded_key
from fedft.privacy.schedule import MEASURE_NOISE, MEASURES, two_digits
from fedft.privacy.secure_sum import noisy_integers
from fedft.privacy.secure_sum.context import threshold
from fedft.privacy.tables import CLEAR, OF_RECORDS, Privacy
from fedft.update import BITS, MEMORY_LOST, Job

log = logging.getLogger(__name__)

TOLD = frozenset({"steps", BITS, MEMORY_LOST})
"""Metrics of a turn that do not depend on single records, which are sent whatever the mode."""


PROMISED = "promised"
"""Stands for the work of a release whose noise the server adds."""


class Budget(NamedTuple):
    """What a site allows on its rows."""

    epsilon: float
    """Most, over all runs; infinite: the account is kept, and bounds nothing."""
    delta: float


@dataclass
class OwnPrivacy:
    """What one client's noise goes by, and costs, in one run. Used by one thread."""

    ledger: Ledger = field(default_factory=Ledger)
    keys: Path | None = None
    """Folder of the run's key; None: it is in memory."""
    rows: int | None = None
    """`[privacy] rows` of the site's file, the number of records that probabilities go by; None: as there are when the
    run is begun, rounded down to two digits."""
    budget: Budget | None = None
    """Of the site's policy; None: nobody asks what a turn costs while the run goes on."""
    deployed: bool = False
    """Whether the server is somebody else's: it is told nothing of the held-out rows then."""
    _said: Privacy = field(default_factory=Privacy)
    _terms: Terms | None = None
    _key: bytes = b""
    _facts: bytes = b""
    """What the run's results depend on beside a turn."""
    _batch: int = 0
    _rows: Sequence[Any] = ()
    """That were digested last."""
    _digest: str = hashlib.sha256().hexdigest()

    def begin(self, client: str, job: Job, config: RunConfig, rows: int) -> None:
        """Take up the run of a job: its key, and the terms that hold to its end, are durable.

        Args:
            client: its name.
            job: the run's.
            config: the run as this client carries it out.
            rows: how many records it trains on at present.
        Raises:
            PlanRefused: `job_mismatch`, the job has another [privacy] than the config; `policy_privacy`, the run was
                begun here on other terms, or delta is too large for so few rows.
            ConfigError: no dp-accounting is installed, or no noise is enough. StateDamaged: the ledger was lost.
        """
        said = self._said = config.privacy
        self._terms = None
        ours, theirs = asdict(said), {**asdict(Privacy()), **job.table("privacy")}
        if other := [k for k in ours if ours[k] != theirs.get(k) and k not in {"rounds", *LOCAL["privacy"]}]:
            raise PlanRefused("job_mismatch", f"the server's [privacy] {other[0]} is not ours")
        if not (said.own_keys or (said.on and self.deployed)):
            return
        if find_spec("dp_accounting") is None:
            raise ConfigError("[privacy] mode: epsilon is computed by dp-accounting; pip install 'fedft[dp]'")
        if (terms := self.ledger.read().runs.get(job.run)) is None:
            terms = self.ledger.begin(_terms(job.run, config, self.rows or two_digits(rows)))
        now = (said.mode, said.epsilon, said.delta, said.noise_multiplier or terms.z)
        if now != (terms.mode, terms.epsilon, terms.delta, terms.z):
            raise PlanRefused("policy_privacy", f"run {job.run} was begun here with another [privacy]")
        if said.mode in OF_RECORDS and terms.delta > 1 / terms.rows:
            log.error(
                "run %s: [privacy] delta = %g is above one over the %d rows here", job.run, terms.delta, terms.rows
            )
            raise PlanRefused("policy_privacy", f"[privacy] delta = {terms.delta:g} is too large for this site's rows")
        self._terms, self._batch = terms, config.local.batch_size
        if said.own_keys:
            self._facts = _facts(job, config)
            self._key = self._key_of_run(client, job)

    def _key_of_run(self, client: str, job: Job) -> bytes:
        if self._said.noise == "seeded":
            return seeded_key(job.seed, "privacy", client)
        return noise_key.of_run(self.keys) if self.keys is not None else self._key or new_key()

    def guarded(self, turn: Turn, rows: Sequence[Any]) -> Turn:
        """The turn, on these encoded rows, with what its noise goes by; as it is where the mode has none at clients."""
        if not self._said.own_keys or turn.plan.evaluate:
            return turn
        assert self._terms is not None
        assert self._said.clip is not None
        probability = 1.0
        if self._said.mode in OF_RECORDS:
            probability = min(1.0, (turn.plan.batch or self._batch) / self._terms.rows)
        clip, z = self._said.clip, self._terms.z
        noise = [self._said.mode, clip, z, probability]
        # without the run's name: a key is of one run, and runs of one seed are to have the same noise
        anywhere = replace(turn, plan=replace(turn.plan, run=""))
        work = work_of(anywhere, self._digest_of(rows), any_slot=True)
        parts = [work.encode(), self._facts, json.dumps(noise).encode()]
        if self._said.shared:
            parts.append(noisy_integers.place(turn, self._said))
        salt = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
        return replace(turn, private=Private(clip, z, Stream(self._key, salt), probability))

    def _digest_of(self, rows: Sequence[Any]) -> str:
        """SHA-256, hexadecimal, over encoded rows in their order; computed once while they are the same object."""
        if self._rows is not rows:
            h = hashlib.sha256()
            for row in rows:
                h.update(repr(row).encode() + b"\0")
            self._rows, self._digest = rows, h.hexdigest()
        return self._digest

    def charge(self, turn: Turn) -> None:
        """Book what a turn costs, durably, unless it was booked before; nothing where nothing is to be booked.

        Where the server adds the noise a site books what it promises, of what the site measures for it, too. Raises
        PlanRefused, `privacy_budget`, where the turn would cost more than the site allows; StateDamaged, RunPaused as
        the ledger does.
        """
        if self._terms is None or (turn.plan.evaluate and self._said.own_keys):
            return
        charge = self._charge(turn, self._terms)
        book = self.ledger.read()
        if book.has(charge):
            return
        if self.budget is not None:
            spent = accountant.epsilon([*book.releases, charge.release], self.budget.delta)
            where = f"run {charge.run}, round {charge.round}"
            if not spent <= self.budget.epsilon:
                said = "%s: would bring these rows to epsilon %.4g at delta %g, [policy] max_epsilon = %g"
                log.error(said, where, spent, self.budget.delta, self.budget.epsilon)
                raise PlanRefused("privacy_budget", "what this site allows on its rows in all runs is spent")
            log.info("%s: epsilon of all runs at most %.4g at delta %g", where, spent, self.budget.delta)
        self.ledger.charge(charge)

    def _charge(self, turn: Turn, terms: Terms) -> Charge:
        plan, private = turn.plan, turn.private
        if private is None:  # a promise has no work of its own: each round is one release, or the whole run is
            if terms.epsilon is not None:
                return Charge(plan.run, 0, PROMISED, "", terms.mode, terms.z)
            if plan.evaluate:
                z = MEASURE_NOISE * terms.z
                return Charge(plan.run, plan.round, f"{PROMISED} measures", "", terms.mode, z, steps=MEASURES)
            return Charge(plan.run, plan.round, PROMISED, "", terms.mode, terms.z)
        seeded = self._said.noise == "seeded"
        key = SEEDED if seeded else hashlib.sha256(private.stream.key).hexdigest()[:16]
        steps = plan.steps if terms.mode in OF_RECORDS else 1
        work = private.stream.salt.hex()
        z = terms.z
        if self._said.worthless == CLEAR:  # the server sees this client's share, not those of all
            z /= math.sqrt(threshold(noisy_integers.members(plan)))
        return Charge(plan.run, plan.round, work, key, terms.mode, z, private.probability, steps)

    def check_measures(self) -> None:
        """Raise PlanRefused, `privacy_evaluation`, where a server may have no measures of held-out rows."""
        if self._closed:
            raise PlanRefused(
                "privacy_evaluation",
                f"nothing is measured here under [privacy] mode = {self._said.mode!r}, secagg = {self._said.secagg!r}",
            )

    @property
    def _closed(self) -> bool:
        return self.deployed and (self._said.at_clients or self._said.shared)

    @property
    def sums_measures(self) -> bool:
        """Whether what is measured for a server leaves as a part of a secure sum only."""
        return self.deployed and self._said.secagg != "off"

    @property
    def _silent(self) -> bool:
        """Whether the server is told nothing that depends on single records, or on one client's."""
        return self._said.at_clients or self._said.secagg != "off"

    def rows_told(self, train: int, held_out: int) -> tuple[int, int]:
        """(rows to train on, held out) as the server is told: how many it may not know where the unit is a row or less.

        Nor of a secure sum. Then they are 1, and 1 or 0; and 0, too, where the server may not have them measured.
        """
        if not self._silent:
            return max(1, train), held_out
        return 1, int(held_out > 0 and not self._closed)

    def told(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Those metrics of a turn that the server may have."""
        return {n: x for n, x in metrics.items() if n in TOLD} if self._silent else dict(metrics)


def of_site(site: SiteConfig, state: Path, keys: Path) -> OwnPrivacy:
    """A site's part in the privacy of one run: the ledger of all runs is in `state`, the run's key in `keys`."""
    policy = site.policy
    budget = Budget(math.inf if policy.max_epsilon is None else policy.max_epsilon, policy.delta)
    return OwnPrivacy(Ledger(state), keys, site.privacy.rows, budget, deployed=True)


def _facts(job: Job, config: RunConfig) -> bytes:
    """What a client's result depends on beside its turn and its rows, as bytes: a server may say it anew in a run."""
    tables = {name: keys for name, keys in job.tables.items() if name not in ("eval", "limits", "privacy")}
    return json.dumps([job.base, job.seed, tables, config.model.bits], sort_keys=True, default=dict).encode()


def _terms(run: str, config: RunConfig, rows: int) -> Terms:
    said = config.privacy
    z, rounds = said.noise_multiplier, said.rounds or config.server.rounds
    if said.shared:
        z = noisy_integers.noise_multiplier(said)
    if z is None:
        assert said.epsilon is not None
        q = min(1.0, config.local.batch_size / rows)
        releases = {"local-dp": rounds, "central-dp": 1}.get(said.mode, config.local.steps * rounds)
        z = _calibrated(said.mode, q, releases, said.epsilon, said.delta or 0.0)
    return Terms(run, said.mode, rows, z, said.epsilon, said.delta or 0.0)


@cache
def _calibrated(mode: str, q: float, count: int, epsilon: float, delta: float) -> float:
    """The noise multiplier at which so many releases cost `epsilon`.

    Of a sum that the server adds noise to nobody here knows how it gets there: one release that costs as much.
    """
    q = q if mode in OF_RECORDS else 1.0
    return accountant.noise_for(lambda z: [Charge("", 0, "", "", mode, z, q, count).release], epsilon, delta)
