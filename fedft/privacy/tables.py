"""The run file's tables on privacy: [privacy], [robust] and [audit], and what their values may be."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedft import check
from fedft.privacy.audit.gate import bounds

CLIPS = 1e-12, 1e12
"""Of `clip`: far from where the grid of integers that it is cut on leaves float64."""
MOST_NOISE = 2.0**20
"""Of `noise_multiplier`: 2^30 times it, times the nine standard deviations that there are, is below 2^63."""
Mode = Literal["none", "central-dp", "local-dp", "example-dp", "zo-dp"]
OF_RECORDS = ("example-dp", "zo-dp")
"""Modes whose unit is a record; of the others it is a client with all its rows."""
SEEDED = "seeded noise"
"""Why there is no epsilon of noise that everybody can compute."""


CLEAR = "secagg = 'clear', so the server sees each update"
"""Why there is none of noise in shares that are not masked."""


@dataclass(frozen=True)
class Privacy:
    """[privacy]: what is hidden of single clients or records, and at which price."""

    mode: Mode = "none"
    """Differential privacy: "central-dp" (the server adds noise to the sum; the unit is a client), "local-dp" (each
    client adds its own), "example-dp" (noise in every step on clipped gradients of single records; the unit is a
    record), "zo-dp" (the same with one noisy number per step, of zeroth-order methods), or "none"."""
    clip: float | None = None
    """C, the largest L2 norm that one client (or, of "example-dp" and "zo-dp", one record) adds to a sum; what is above
    is scaled down to it. Needed with a mode."""
    noise_multiplier: float | None = None
    """z: the standard deviation of the noise on the sum is z C. One of this and `epsilon` is needed with a mode."""
    epsilon: float | None = None
    """What all `[server] rounds` together may cost: z is computed from it before the run starts."""
    delta: float | None = None
    """The probability that epsilon does not hold; needed with a mode. 1 / (10 N) of N clients, or of N records, is
    usual; above 1 / N it is refused."""
    max_epsilon: float | None = None
    """The run ends before the round that would cost more; left out: `epsilon`, or no such end. Where noise is added by
    clients a site's own [policy] max_epsilon ends its part."""
    rounds: int | None = None
    """Where noise is added by clients: how many rounds `epsilon` is for; left out: `[server] rounds`. A run that goes
    on for longer keeps its noise, and costs more. Of "central-dp" with `secagg`, where `epsilon` needs it."""
    cohort: Literal["asked", "cyclic", "poisson"] = "asked"
    """Who is asked: "asked": as `[clients] per_round` says, drawn from the seed, which everybody knows; "cyclic": one
    group after another in a fixed order; "poisson": each by a coin of its own, which stays the server's secret."""
    adaptive_quantile: float | None = None
    """Of "central-dp": C follows the norm that this share of clients stays below, itself with noise; 0.5 is usual. Left
    out: C stands still."""
    clip_learning_rate: float = 0.2
    """With `adaptive_quantile`: how fast C follows."""
    balance: bool = False
    """Of "central-dp" with both factors of LoRA: they are scaled to equal norms before the clip, and back behind it."""
    noise: Literal["os", "seeded"] = "os"
    """"os": noise from the operating system's randomness; "seeded": from the seed, the same on every machine, for tests
    and comparisons: it hides nothing, and epsilon is reported as none."""
    secagg: Literal["off", "on", "clear"] = "off"
    """Secure sums: "on": the server learns the sum of all updates and no single one; "clear": the same integers without
    masks, for tests and comparisons, which hides nothing."""
    value_bits: int = 24
    """With `secagg`: bits of each number."""
    ring_bits: Literal[16, 32] = 32
    """With `secagg`: bits of each number under masks; of so many clients as fit their sum."""
    range: float | None = None
    """With `secagg`: the largest magnitude of a number, what is beyond it is cut; left out: as the strategy, the
    optimiser and its steps allow."""
    min_cohort: int = 5
    """With `secagg`: fewest clients; 3 or more."""
    evaluate: Literal["none", "noisy", "summed"] = "none"
    """Under a mode or with `secagg`, in a deployment: what is measured on clients' held-out rows. "none": nothing;
    "noisy", of "central-dp": sums with noise, which cost epsilon too; "summed", with `secagg` and no mode: means, from
    one secure sum more. Simulations measure as ever, and say that this is outside of epsilon."""

    @property
    def on(self) -> bool:
        """Whether there is noise: differential privacy of any mode."""
        return self.mode != "none"

    @property
    def at_clients(self) -> bool:
        """Whether each client adds noise of its own, and keeps its own account of what it has cost."""
        return self.mode == "local-dp" or self.mode in OF_RECORDS

    @property
    def shared(self) -> bool:
        """Whether the noise of a sum is added by its clients, a share each: the server sees no sum without it."""
        return self.mode == "central-dp" and self.secagg != "off"

    @property
    def worthless(self) -> str:
        """Why there is no epsilon whatever the noise; "" where there is one."""
        if self.noise == "seeded":
            return SEEDED
        return CLEAR if self.shared and self.secagg == "clear" else ""

    @property
    def own_keys(self) -> bool:
        """Whether noise follows from a key of each client's own, and is in each client's own account."""
        return self.at_clients or self.shared


@dataclass(frozen=True)
class Robust:
    """[robust]: sums that a few dishonest clients cannot move as they like."""

    rule: Literal["none", "norm_clip", "multi_krum", "geometric_median", "fltrust", "median", "trimmed_mean"] = "none"
    """In place of the mean by examples: "norm_clip", "multi_krum", "geometric_median" and "fltrust" weigh clients by
    distances between changes of the model; "median" and "trimmed_mean" go entry by entry."""
    f: int | None = None
    """Of "multi_krum": how many clients of a round may be dishonest; left out: as many as it can stand."""
    trim: float = 0.2
    """Of "trimmed_mean": the share that is left out at either end."""
    root: str | list[str] | None = None
    """Of "fltrust": records that the server trains on itself, named as `[data] train`."""


@dataclass(frozen=True)
class Audit:
    """[audit]: what is planted for `fedft audit`, and what has to hold before a model is given out."""

    canaries: int = 0
    """Simulations: records with a random secret; half of them, by coin, are added to clients' training rows."""
    repeats: list[int] = field(default_factory=lambda: [1, 4, 16])
    """How often a canary stands in its client's rows; dealt out in turn."""
    seed: int = 0
    """Of the secrets and the coins."""
    gate: list[str] = field(default_factory=list)
    """What an audit of the finished run must find before `model/` is written, as ["exposure=4", "auc=0.6"]: at most so
    much. []: no audit is waited for."""


def check_privacy(privacy: Privacy, robust: Robust, audit: Audit) -> None:
    """Return None if every value is one that its key may have, and keys that belong together are there.

    Raises ValueError in one line. Comparisons are written so that NaN and infinity are refused.
    """

    def of(table: str, value: Any, *keys: str) -> dict[str, Any]:
        said = {f"[{table}] {k}": getattr(value, k) for k in keys}
        return {name: x for name, x in said.items() if x is not None}

    check.above(0, **of("privacy", privacy, "clip", "noise_multiplier", "epsilon", "delta", "max_epsilon", "range"))
    check.above(0, **of("privacy", privacy, "clip_learning_rate"))
    check.between(0, 1, **of("privacy", privacy, "delta", "adaptive_quantile"), **of("robust", robust, "trim"))
    check.between(*CLIPS, **of("privacy", privacy, "clip"))
    check.between(0, MOST_NOISE, **of("privacy", privacy, "noise_multiplier"))
    check.between(2, 24, **of("privacy", privacy, "value_bits"))
    check.at_least(3, **of("privacy", privacy, "min_cohort"))
    check.at_least(0, **of("robust", robust, "f"))
    check_audit(audit)
    if robust.rule != "none" and (privacy.secagg != "off" or privacy.mode == "central-dp"):
        other = "secagg" if privacy.secagg != "off" else "mode"
        why = "the server sees no single update" if other == "secagg" else "what a rule may change is not bounded by C"
        raise ValueError(f"[robust] rule = {robust.rule!r} and [privacy] {other} = {getattr(privacy, other)!r}: {why}")
    if privacy.evaluate == "summed" and (privacy.on or privacy.secagg == "off"):
        what = f"mode = {privacy.mode!r}, secagg = {privacy.secagg!r}"
        raise ValueError(
            f"[privacy] evaluate = 'summed' and {what}: it is of secure sums without a mode; wanted 'none'"
        )
    if not privacy.on:
        return
    for key in ("clip", "delta"):
        if getattr(privacy, key) is None:
            raise ValueError(f"[privacy] {key}: mode = {privacy.mode!r} needs it")
    if (privacy.noise_multiplier is None) == (privacy.epsilon is None):
        both = "both are said" if privacy.epsilon is not None else "neither is said"
        raise ValueError(f"[privacy] mode = {privacy.mode!r} needs one of noise_multiplier and epsilon; {both}")
    if privacy.at_clients:
        _check_at_clients(privacy)
    elif privacy.shared:
        _check_shared(privacy)
    elif privacy.rounds is not None:
        raise ValueError(f"[privacy] rounds: of modes with noise at clients; mode = {privacy.mode!r} goes by [server]")


def _check_at_clients(privacy: Privacy) -> None:
    """Raise ValueError where a key says what no server can do while noise is added by clients."""
    said = f"mode = {privacy.mode!r}"
    if privacy.max_epsilon is not None:
        raise ValueError(f"[privacy] max_epsilon: with {said} each site has its own, [policy] max_epsilon of its file")
    if privacy.evaluate != "none":
        raise ValueError(f"[privacy] evaluate = {privacy.evaluate!r}: with {said} sites measure nothing for a server")
    if privacy.rounds is not None:
        check.at_least(1, **{"[privacy] rounds": privacy.rounds})
        if privacy.epsilon is None:
            raise ValueError("[privacy] rounds: how many `epsilon` is for; noise_multiplier holds for each round")


def _check_shared(privacy: Privacy) -> None:
    """Raise ValueError where a key needs what nobody has while clients add noise in shares: one who sees updates."""
    said = f'mode = "central-dp" with secagg = {privacy.secagg!r}'
    known = "nobody sees the norm of one update"
    beside = {
        "adaptive_quantile": (privacy.adaptive_quantile is not None, known, "left out, and a clip that stands still"),
        "balance": (privacy.balance, "the clip is each client's own", "false"),
        "cohort": (privacy.cohort == "poisson", "each client hears who is in a sum", "'asked' or 'cyclic'"),
        "evaluate": (privacy.evaluate != "none", "sites measure nothing for a server", "'none'"),
    }
    for key, (holds, why, wanted) in beside.items():
        if holds:
            raise ValueError(f"[privacy] {key} = {getattr(privacy, key)!r} and {said}: {why}; wanted {key} {wanted}")
    if privacy.rounds is not None:
        check.at_least(1, **{"[privacy] rounds": privacy.rounds})
    if (privacy.rounds is None) != (privacy.epsilon is None):
        raise ValueError(
            f"[privacy] rounds and epsilon belong together, {said}: each client computes the noise that epsilon needs "
            "for so many rounds; or say noise_multiplier"
        )


def check_audit(audit: Audit) -> None:
    """Return None if every value is one that its key may have. Raises ValueError in one line."""
    check.at_least(0, **{"[audit] canaries": audit.canaries, "[audit] seed": audit.seed})
    bounds(audit.gate)
    if not audit.repeats or any(r < 1 for r in audit.repeats):
        raise ValueError(f"[audit] repeats is {audit.repeats}, wanted numbers from 1 on")


def unlike_default(table: Privacy | Robust | Audit) -> dict[str, Any]:
    """The keys of a table that are not at their defaults, as plain values.

    >>> unlike_default(Privacy(mode="central-dp", clip=0.5))
    {'mode': 'central-dp', 'clip': 0.5}
    """
    plain = asdict(type(table)())
    return {k: v for k, v in asdict(table).items() if v != plain[k]}
