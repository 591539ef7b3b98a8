"""Which strategy can be under which protection: every cell of the table, its options, and what cannot go together."""

from typing import Any

import pytest

from fedft import run_file, strategies
from fedft.aggregation.robust_rules import rules_for
from fedft.contract import Trained
from fedft.errors import ConfigError
from fedft.privacy import unfit
from fedft.privacy.strategy_table import ALL_RULES, COLUMNS, LINES, OPTIONS, Why
from fedft.recipe import LoRA, Recipe
from fedft.registry import BUILT_IN

SHEET = """
             secagg central-dp shares local-dp example-dp zo-dp robust
fedavg          y       y        y       y        y         -     all
fedit           y       y        y       y        y         -     products
ffa_lora        y       y        y       y        y         -     all
rolora          y       y        y       y        y         -     all
fedsa_lora      y       y        y       y        y         -     unrooted
flora           -       -        -       -        y         -     products
flexlora        -       -        -       -        y         -     products
fedex_lora      -       -        -       -        y         -     products
lora_fair       -       -        -       -        y         -     products
hetlora         -       -        -       -        y         -     multi_krum
flasc           -       -        -       -        y         -     none
fedkseed        y       y        y       y        -         y     median norm_clip trimmed_mean
mezo            -       -        -       -        -         y     none
ferret          y       y        y       y        y         -     norm_clip
zo_fedavg       y       y        y       y        -         y     all
scaffold        -       -        -       -        y         -     none
fedpipe         -       -        -       -        -         -     none
fedspine        -       -        -       -        -         -     none
"""
"""Section 8 of privacy.md, and the two strategies that it does not know. Where it leaves noise shares out for the time
that they take, how many numbers are sent decides (`noise_shares.MOST_NUMBERS`)."""
UNROOTED = ALL_RULES - {"fltrust"}
RULES = {"all": ALL_RULES, "products": ALL_RULES - {"median", "trimmed_mean"}, "unrooted": UNROOTED, "none": set()}
GIVEN: dict[str, dict[str, Any]] = {
    "secagg": {"range": 1.0, "secagg": "on"},
    "shares": {"mode": "central-dp", "secagg": "on"},
    **{mode: {"mode": mode} for mode in ("central-dp", "local-dp", "example-dp", "zo-dp")},
}
NEEDED = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
FITTING = {"fedavg": {"space": "lora"}, "ferret": {"space": "lora", "allocation": "size"}}
"""Options with which a strategy is what its line in the table is for."""


def why(name: str, privacy: dict[str, Any], options: dict[str, Any] | None = None, **tables: Any) -> str:
    """What a run file is refused with; "" where it is taken."""
    needed = NEEDED if "mode" in privacy else {}
    options = FITTING.get(name, {}) if options is None else options
    rounds = {"rounds": 5} | tables.pop("server", {})
    said = {"strategy": {"name": name, **options}, "privacy": needed | privacy, "server": rounds}
    try:
        strategies.of(run_file.from_dict(said | tables))
    except ConfigError as e:
        return str(e)
    return ""


def test_the_table_in_the_code_is_the_sheets() -> None:
    head, *lines = SHEET.strip().splitlines()
    assert tuple(head.split()[:-1]) == COLUMNS
    assert {line.split()[0] for line in lines} == LINES.keys() == set(BUILT_IN) - unfit.MOVES_ONLY
    for name, *cells in (line.split() for line in lines):
        fits = {c for c, cell in zip(COLUMNS, cells, strict=False) if cell == "y"}
        assert fits == set(COLUMNS) - LINES[name].no.keys(), name
        rules = RULES.get(cells[6], set(cells[6:]))
        assert LINES[name].rules == rules, name


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("column", COLUMNS)
def test_every_cell_is_what_a_run_file_meets(name: str, column: str) -> None:
    """Where it says no: one sentence with both keys, the reason and what to take in its place."""
    refused = why(name, GIVEN[column])
    no = LINES[name].no.get(column)
    assert bool(refused) == bool(no), refused
    if no:
        assert refused.startswith(f"[strategy] name = '{name}' and [privacy] ")
        assert repr(list(GIVEN[column].values())[-1]) in refused
        assert "; wanted " in refused
        assert "\n" not in refused


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("name", ["fedkseed", "ferret", "fedit"])
def test_what_fits_a_pair_of_protections_fits_each(name: str, column: str) -> None:
    assert why(name, GIVEN["example-dp"] | GIVEN["secagg"], FITTING.get(name, {})) == why(name, GIVEN["example-dp"])
    assert column in unfit.columns(run_file.from_dict({"privacy": NEEDED | GIVEN[column]})) or column == "secagg"


def test_of_two_strategies_on_each_other_both_have_to_fit() -> None:
    for over in ("fedopt", "fedprox"):
        assert not why(over, GIVEN["central-dp"], {})
        assert not why(over, GIVEN["central-dp"], {"on": "ffa_lora"})
    assert "'flora' and [privacy] mode = 'central-dp'" in why("fedprox", GIVEN["central-dp"], {"on": "flora"})
    inner = {"name": "fedprox", "on": {"name": "scaffold", "on": "ffa_lora"}}
    assert "'scaffold' and [privacy] secagg = 'on'" in why("fedopt", GIVEN["secagg"], {"on": inner})
    assert not why("scaffold", GIVEN["example-dp"], {"on": "ffa_lora"})
    assert "space = 'full' of fedavg" in why("scaffold", GIVEN["example-dp"], {"on": "fedavg"})


ANY_OTHER = {"weight_decay": 0.1, "first_order_from": 0}
"""Values of options that may have none but the default."""


@pytest.mark.parametrize(
    ("name", "option", "value", "column"),
    [
        (name, o.name, value, column)
        for o in OPTIONS
        for name in o.strategies
        for value in o.values or (ANY_OTHER[o.name],)
        for column in o.no
    ],
)
def test_an_option_that_stands_against_a_protection_is_named(name: str, option: str, value: Any, column: str) -> None:
    if column not in LINES[name].no:
        assert not why(name, GIVEN[column])
    refused = why(name, GIVEN[column], FITTING.get(name, {}) | {option: value})
    assert f"{option} = {value!r} of {name} and [privacy]" in refused
    assert "; wanted " in refused


def test_equal_weights_are_a_sum_too() -> None:
    """What is not linear in examples is linear in clients, which is how a guarded sum counts."""
    for column in ("central-dp", "secagg", "local-dp"):
        assert not why("fedavg", GIVEN[column], {"space": "lora", "weights": "uniform"})


@pytest.mark.parametrize(
    ("privacy", "tables", "said"),
    [
        ("central-dp", {"server": {"buffer": 2}}, "[server] buffer = 2 and [privacy] mode = 'central-dp'"),
        ("secagg", {"server": {"buffer": 2}}, "[server] buffer = 2 and [privacy] secagg = 'on'"),
        ("central-dp", {"clients": {"plan": "halves"}}, "[clients] plan = 'halves' and [privacy] mode"),
        ("secagg", {"codec": {"up": "int8"}}, "[codec] up = 'int8' and [privacy] secagg = 'on'"),
        ("secagg", {"codec": {"up": "topk:0.1 | fp16"}}, "[codec] up = 'topk:0.1 | fp16' and [privacy] secagg = 'on'"),
        ("example-dp", {"local": {"packing": True}}, "[local] packing and [privacy] mode = 'example-dp'"),
        ("example-dp", {"local": {"epochs": 1.0}}, "[local] epochs = 1.0 and [privacy] mode = 'example-dp'"),
        ("example-dp", {"server": {"together": 4}}, "[server] together = 4 and [privacy] mode = 'example-dp'"),
    ],
)
def test_keys_that_cannot_go_together_are_both_named(privacy: str, tables: dict[str, Any], said: str) -> None:
    refused = why("ffa_lora", GIVEN[privacy], **tables)
    assert refused.startswith(said)
    assert "; wanted " in refused
    assert not why("ffa_lora", GIVEN[privacy])
    assert not why("ffa_lora", {}, **tables)


@pytest.mark.parametrize("name", LINES)
def test_robust_rules_fit_whom_the_table_says(name: str) -> None:
    for rule in sorted(ALL_RULES):
        root = {"root": "x.jsonl"} if rule == "fltrust" else {}
        options = {"space": "full"} if name in ("fedavg", "zo_fedavg") else {}
        refused = why(name, {}, options, robust={"rule": rule, **root})
        assert bool(refused) == (rule not in LINES[name].rules), refused
        assert not refused or refused.startswith(f"[strategy] name = '{name}' and [robust] rule = '{rule}'")
    assert "wanted one of fltrust" in why("fedavg", {}, {"space": "lora"}, robust={"rule": "median"})


def test_a_strategy_of_another_package_is_judged_by_what_it_declares() -> None:
    def walks(handle: Any, data: Any, turn: Any) -> Trained:
        raise AssertionError

    def no(recipe: Recipe) -> set[str]:
        line = unfit.line_of(recipe)
        assert all(isinstance(w, Why) for w in line.no.values())
        return set(line.no)

    always = {"zo-dp"}
    assert no(Recipe("r", LoRA(), ring_summable=True)) == always
    assert no(Recipe("r", LoRA())) == always | {"secagg", "shares"}
    assert no(Recipe("r", LoRA(), linear=False)) == always | {"secagg", "central-dp", "shares", "local-dp"}
    assert no(Recipe("r", LoRA(), reveals_clients=True, ring_summable=True)) >= {"secagg", "central-dp"}
    assert no(Recipe("r", LoRA(), upload_kind="values", ring_summable=True)) >= {"secagg", "central-dp"}
    assert no(Recipe("r", LoRA(), local=walks, ring_summable=True)) == always | {"example-dp"}


@pytest.mark.parametrize("name", [n for n in LINES if n not in ("zo_fedavg", "fedkseed")])
def test_what_built_in_strategies_declare_agrees_with_the_table(name: str) -> None:
    """Sums are enough by the table only where the recipe says `linear`."""
    recipe = strategies.make(name, FITTING.get(name, {}))
    assert ("central-dp" in LINES[name].no) == ("central-dp" in unfit.line_of(recipe).no)
    assert ("secagg" in LINES[name].no) == ("secagg" in unfit.line_of(recipe).no)


@pytest.mark.parametrize("name", LINES)
def test_the_table_s_rules_are_those_that_a_recipe_can_have(name: str) -> None:
    recipe = strategies.make(name, {"space": "full"} if name == "zo_fedavg" else {})
    assert {*rules_for(recipe)} == LINES[name].rules
