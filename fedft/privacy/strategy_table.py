"""Which strategy can be under which protection, as data: a line for each, and why where it cannot.

A column is what a run file asks for: "secagg" (sums that nobody sees the parts of), "central-dp", "shares" (both of
them: clients add noise in shares, under masks), "local-dp", "example-dp", "zo-dp", and of robust sums the rules
that a strategy's updates fit. Strategies that are `on` another one and only move its sum, or only pull its steps, have
no line: they are as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedft.privacy.tables import OF_RECORDS


class Why(NamedTuple):
    """A cell that says no."""

    reason: str
    """What stands against it, in words that follow a colon."""
    wanted: str
    """The nearest that works."""


SUMS = ("secagg", "central-dp", "shares", "local-dp")
"""Columns that need no more of a strategy than sums, and no less."""
COLUMNS = (*SUMS, *OF_RECORDS)

OWN_FACTORS = Why("its server needs every client's own factors, not their sum", "fedit, rolora or ffa_lora")
UNLIKE = Why("what its clients train and send follows from their own data", "fedit, rolora or ffa_lora")
OWN_ENTRIES = Why("every client sends entries of its own choice", "ffa_lora")
TWO_SUMS = Why("its control variates are a second sum, in other weights", "the strategy that it is on, by itself")
SHOWS = Why("it shows everybody each client's own numbers", "fedkseed, or ferret with seeds = 'shared'")
HISTORY = Why("statistics of its directions would be further releases", "pro = false")
VALUES = Why("its clients send what they keep for themselves, not changes", "global_b = 'none' and realign = false")
NORMS = Why("norms of blocks would be further releases", "allocation = 'size'")
SCALED = Why("its coordinates are no linear function of the change", "scale = 'unbiased', 'projection' or 'mmse'")
SUBSETS = Why("every client sends coordinates of its own choice", "variant = 'exact'")
NO_GRADIENTS = Why("its steps are not gradients", "mode = 'zo-dp'")
NO_WALK = Why("its steps are gradients, not single numbers", "mode = 'example-dp', or fedkseed, mezo or zo_fedavg")
WHOLE_MODEL = Why("gradients of single records are taken of adapters and heads only", "space = 'lora'")
MIXED_STEPS = Why("layers that are trained by gradients would have no noise", "first_order_from left out")
DECAYS = Why("the decay travels with the scalars, and would be clipped with them", "weight_decay = 0.0")
LOOKS_AGAIN = Why("it looks at the records' losses again, without noise", "rule = 'sgd', 'momentum', 'adam' or 'sign'")
OVER_CLASSES = Why("it couples the records of a batch", "objective = 'loss' or 'accuracy'")

NO_RULES: frozenset[str] = frozenset()
PRODUCTS = frozenset({"norm_clip", "multi_krum", "geometric_median", "fltrust"})
"""Rules of distances between products, whatever pairs of factors stand for."""
ALL_RULES = PRODUCTS | {"median", "trimmed_mean"}
"""And those that go entry by entry: where one factor is shared, or there are none."""


@dataclass(frozen=True)
class Line:
    """One strategy, whatever its options."""

    no: Mapping[str, Why]
    """Column -> why it cannot be; the others can."""
    rules: frozenset[str] = ALL_RULES
    """Of `[robust] rule`, the ones that it can have."""


@dataclass(frozen=True)
class Option:
    """What some values of an option of a strategy stand against, besides."""

    strategies: tuple[str, ...]
    name: str
    values: tuple[Any, ...]
    """(): whatever is not the option's default."""
    no: Mapping[str, Why]
    rules: frozenset[str] = ALL_RULES


def _first(sums: Why | None = None) -> dict[str, Why]:
    """Of a strategy with gradient steps; `sums`: why its sums are not enough."""
    return (dict.fromkeys(SUMS, sums) if sums else {}) | {"zo-dp": NO_WALK}


def _walk(sums: Why | None = None) -> dict[str, Why]:
    """Of a strategy with zeroth-order steps."""
    return (dict.fromkeys(SUMS, sums) if sums else {}) | {"example-dp": NO_GRADIENTS}


LINES: Mapping[str, Line] = {
    "fedavg": Line(_first()),
    "fedit": Line(_first(), PRODUCTS),
    "ffa_lora": Line(_first()),
    "rolora": Line(_first()),
    "fedsa_lora": Line(_first(), ALL_RULES - {"fltrust"}),
    "flora": Line(_first(OWN_FACTORS), PRODUCTS),
    "flexlora": Line(_first(OWN_FACTORS), PRODUCTS),
    "fedex_lora": Line(_first(OWN_FACTORS), PRODUCTS),
    "lora_fair": Line(_first(OWN_FACTORS), PRODUCTS),
    "hetlora": Line(_first(OWN_FACTORS), frozenset({"multi_krum"})),
    "fedpipe": Line(dict.fromkeys(COLUMNS, UNLIKE), NO_RULES),
    "fedspine": Line(dict.fromkeys(COLUMNS, UNLIKE), NO_RULES),
    "flasc": Line(_first(OWN_ENTRIES), NO_RULES),
    "fedkseed": Line(_walk(), frozenset({"median", "norm_clip", "trimmed_mean"})),
    "mezo": Line(_walk(SHOWS), NO_RULES),
    "zo_fedavg": Line(_walk()),
    "ferret": Line(_first(), frozenset({"norm_clip"})),
    "scaffold": Line(_first(TWO_SUMS), NO_RULES),
}
"""By name. Of two that are on each other both have to fit."""

WALKERS = ("fedkseed", "mezo", "zo_fedavg")
NOISY = ("central-dp", "local-dp")
OPTIONS = (
    Option(("fedavg", "ferret"), "space", ("full",), {"example-dp": WHOLE_MODEL}),
    Option(("fedavg", "zo_fedavg"), "space", ("lora",), {}, PRODUCTS),
    Option(("fedsa_lora",), "global_b", ("mean",), dict.fromkeys(SUMS, VALUES)),
    Option(("fedsa_lora",), "realign", (True,), dict.fromkeys(SUMS, VALUES)),
    Option(("fedkseed",), "pro", (True,), dict.fromkeys(SUMS, HISTORY), NO_RULES),
    Option(("ferret",), "seeds", ("per_client",), dict.fromkeys(SUMS, SHOWS), NO_RULES),
    Option(("ferret",), "variant", ("reference",), dict.fromkeys(SUMS, SUBSETS), NO_RULES),
    Option(("ferret",), "allocation", ("norm", "error"), dict.fromkeys(NOISY, NORMS)),
    Option(("ferret",), "scale", ("norm", "lstsq"), dict.fromkeys(NOISY, SCALED)),
    Option(WALKERS, "rule", ("conservative",), {"zo-dp": LOOKS_AGAIN}),
    Option(WALKERS, "objective", ("f1",), {"zo-dp": OVER_CLASSES}),
    Option(("zo_fedavg",), "first_order_from", (), {"zo-dp": MIXED_STEPS}),
    Option(("fedkseed",), "weight_decay", (), dict.fromkeys(NOISY, DECAYS)),
)
