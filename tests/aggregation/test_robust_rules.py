"""Which rule a strategy may have, and the line that refuses what makes no sense."""

from dataclasses import replace

import pytest
import torch

from fedft import registry, run_file, strategies, testing
from fedft.aggregation.robust_rules import BY_ENTRY, BY_WEIGHT, check, rules_for
from fedft.errors import ConfigError

EVERY = {*BY_WEIGHT, *BY_ENTRY}
RULES = {  # the column of privacy.md 8; what differs from it has a reason
    **dict.fromkeys(("fedavg", "ffa_lora", "rolora"), EVERY),
    **{n: {*BY_WEIGHT} for n in ("fedit", "fedopt", "fedprox", "flora", "flexlora", "fedex_lora", "lora_fair")},
    "fedsa_lora": EVERY - {"fltrust"},  # its clients keep their B
    "zo_fedavg": {*BY_WEIGHT},  # both factors travel
    "hetlora": {"multi_krum"},  # it weighs clients itself, unless weights = "examples"
    "fedkseed": {"norm_clip", *BY_ENTRY},
    "ferret": {"norm_clip"},
    **{name: set() for name in ("flasc", "mezo", "scaffold", "fedpipe", "fedspine")},
}


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_what_a_strategy_may_have(name):
    assert {*rules_for(strategies.make(name, {}))} == RULES[name]


@pytest.mark.parametrize(
    ("name", "options", "rules"),
    [
        ("fedavg", {"space": "lora"}, {*BY_WEIGHT}),
        ("zo_fedavg", {"space": "full"}, EVERY),
        ("hetlora", {"weights": "examples"}, {*BY_WEIGHT}),
        ("fedex_lora", {"weights": "uniform"}, {"multi_krum"}),
        ("fedit", {"padding": "zero"}, {*BY_WEIGHT}),
        ("fedkseed", {"pro": True}, set()),
        ("fedopt", {"on": "ffa_lora"}, EVERY),
    ],
)
def test_options_count(name, options, rules):
    assert {*rules_for(strategies.make(name, options))} == rules


@pytest.mark.parametrize("name", [n for n in registry.BUILT_IN if "norm_clip" in rules_for(strategies.make(n, {}))])
def test_where_rules_weigh_clients_aggregates_heed_num_examples(name):
    t = testing.toy(strategies.make(name, {}))
    updates = [t.update(t.state(), k, steps=2) for k in range(3)]  # A learns from B
    more = [replace(u, num_examples=n) for u, n in zip(updates, (2**20, 3, 2**10), strict=True)]
    a, b = t.recipe.aggregate(iter(updates)), t.recipe.aggregate(iter(more))
    assert any(not torch.equal(x, b[n]) for n, x in a.items())


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"rule": "median"}, "rule = 'median': fedit cannot have it as it is set; it can have norm_clip, multi_krum"),
        ({"rule": "multi_krum", "f": 2}, "f = 2 needs 7 clients in a round, and 5 are asked"),
        ({"rule": "norm_clip", "f": 2}, "[robust] f is of rule = 'multi_krum', found rule = 'norm_clip'"),
        ({"rule": "fltrust"}, "rule = 'fltrust' needs [robust] root"),
        ({"rule": "none", "root": "a.jsonl"}, "[robust] root is of rule = 'fltrust', found rule = 'none'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(said, line):
    config = run_file.from_dict({"robust": said, "clients": {"per_round": 5}, "strategy": {"name": "fedit"}})
    with pytest.raises(ConfigError) as caught:
        check(config, strategies.make("fedit", {}), deployed=True)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_trim_that_leaves_nothing_and_rounds_that_do_not_wait_are_refused():
    ffa = strategies.make("ffa_lora", {})
    config = run_file.from_dict({"robust": {"rule": "trimmed_mean", "trim": 0.5}, "strategy": {"name": "ffa_lora"}})
    with pytest.raises(ConfigError, match=r"wanted below 0\.5"):
        check(config, ffa, deployed=True)
    config = run_file.from_dict({"robust": {"rule": "median"}, "server": {"buffer": 2}})
    with pytest.raises(ConfigError, match=r"\[server\] buffer began at unlike states"):
        check(config, ffa, deployed=True)


def test_under_noise_a_rule_is_warned_of_and_root_s_turn_refused(caplog):
    noise = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}
    config = run_file.from_dict({"robust": {"rule": "norm_clip"}, "privacy": noise, "strategy": {"name": "fedit"}})
    check(config, fedit := strategies.make("fedit", {}), deployed=True)
    assert "noise brings honest updates apart" in caplog.text
    root = run_file.from_dict({"robust": {"rule": "fltrust", "root": "stdlib-docstrings"}, "privacy": noise})
    with pytest.raises(ConfigError, match="the server's own turn takes no part"):
        check(root, fedit, deployed=True)


def test_a_quorum_that_is_too_few_for_f_is_warned_of(caplog):
    def told(quorum: float) -> str:
        caplog.clear()
        tables = {"robust": {"rule": "multi_krum", "f": 1}, "clients": {"per_round": 6}, "server": {"quorum": quorum}}
        check(run_file.from_dict(tables), strategies.make("fedit", {}), deployed=True)
        return caplog.text

    assert "f = 1 needs 5 answers, and [server] quorum ends rounds at 4 of 6" in told(0.6)
    assert not told(0.8)
