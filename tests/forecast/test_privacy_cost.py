"""What `fedft plan`, a run's header and a server's log say of privacy before a run begins."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file, strategies
from fedft.contract import Layout
from fedft.errors import ConfigError
from fedft.forecast import privacy_cost
from fedft.reports import privacy_lines, run_header
from fedft.server import foreseen_privacy

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

LAYOUT = Layout(modules={"q": (64, 32)}, parameters={"q.weight": (32, 64)})
BASE: dict[str, Any] = {"clip": 0.5, "delta": 1e-3}


def foreseen(privacy: dict[str, Any], name: str = "ffa_lora", rows: dict[str, int | None] | None = None, **more: Any):
    tables = {"strategy": {"name": name}, "server": {"rounds": 10}, "privacy": privacy, "local": {"steps": 20}, **more}
    config = run_file.from_dict(tables)
    found = {f"c{n}": 100 * (n + 1) for n in range(8)} if rows is None else rows
    return foreseen_privacy.of_run(config, strategies.of(config), LAYOUT, found)


def test_nothing_is_said_where_nothing_is_protected() -> None:
    assert foreseen({}) == {}
    assert privacy_lines.lines({}) == []


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"epsilon": 8.0}, "[privacy] epsilon = 8.0 has no effect: mode = 'none', nothing is hidden"),
        ({"min_cohort": 9}, "[privacy] min_cohort = 9 has no effect: secagg = 'off'"),
        (BASE | {"mode": "local-dp", "noise_multiplier": 9.0, "balance": True}, "[privacy] balance = True has no"),
        (BASE | {"mode": "central-dp", "noise_multiplier": 9.0, "clip_learning_rate": 0.1}, "[privacy] clip_learning"),
        ({"secagg": "on", "min_cohort": 9}, ""),
        (BASE | {"mode": "central-dp", "noise_multiplier": 9.0, "cohort": "cyclic", "evaluate": "noisy"}, ""),
        (
            BASE | {"mode": "central-dp", "noise_multiplier": 1.0, "secagg": "on", "range": 1.0},
            "[privacy] range = 1.0 has no effect: clip says how far",
        ),
    ],
)
def test_keys_that_count_for_nothing_are_said(
    said: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    foreseen(said)
    assert [r.message.startswith(line) for r in caplog.records] == ([True] if line else [])


def test_secure_sums_alone_have_a_line_and_no_epsilon() -> None:
    assert privacy_lines.lines(foreseen({"secagg": "on"})) == [f"sums     {privacy_lines.SUMS['on']}"]
    (line,) = privacy_lines.lines(foreseen({"secagg": "clear"}))
    assert "nothing is hidden" in line


def test_an_epsilon_is_said_with_the_noise_that_it_takes_and_other_noise_around() -> None:
    cost = foreseen(BASE | {"mode": "central-dp", "epsilon": 8.0})
    assert 7.8 < cost["epsilon"] <= 8
    assert [rounds for rounds, _ in cost["after"]] == [1, 5, 10]
    assert [value for _, value in cost["after"]] == sorted(value for _, value in cost["after"])
    assert [z for z, _ in cost["around"]] == [cost["noise_multiplier"] * k for k in (0.5, 1, 2)]
    assert cost["numbers"] == 64 * 8  # B of rank 8
    assert cost["sigma"] == pytest.approx(0.5 * cost["noise_multiplier"] / 8)
    assert cost["noise_to_signal"] == pytest.approx(cost["noise_multiplier"] * 512**0.5 / 8)
    said = privacy_lines.lines(cost)
    assert said[0].startswith("privacy  central-dp, of one client: epsilon 7.9")
    assert "at delta 0.001 in 10 rounds" in said[0]


def test_noise_in_shares_says_against_whom_epsilon_holds() -> None:
    """Eight clients, two of whom may tell their shares: of t = 6 shares four are left."""
    said = BASE | {"mode": "central-dp", "secagg": "on"}
    cost = foreseen(said | {"epsilon": 8.0, "rounds": 10})
    assert 7.8 < cost["epsilon"] <= 8
    assert cost["colluding"][0] == 2
    alone = foreseen(said | {"noise_multiplier": cost["noise_multiplier"] * (4 / 6) ** 0.5})
    assert cost["colluding"][1] == pytest.approx(alone["epsilon"], rel=1e-6)
    assert cost["noise_to_signal"] == pytest.approx(cost["noise_multiplier"] * (8 / 6 * cost["numbers"]) ** 0.5 / 8)
    lines = privacy_lines.lines(cost)
    assert f"         with 2 clients that tell it their noise: {alone['epsilon']:.3g}" in lines
    assert all(len(line) <= 80 for line in lines)
    clear = foreseen(BASE | {"mode": "central-dp", "noise_multiplier": 1.0, "secagg": "clear"})
    assert clear["epsilon_why"] == "secagg = 'clear', so the server sees each update"
    with pytest.raises(ConfigError, match=r"noise of 3 steps among 8 clients: wanted 9\.79796 at least, or more bits"):
        foreseen(said | {"noise_multiplier": 1.0, "value_bits": 3})


def test_small_clients_are_said_before_the_first_step() -> None:
    cost = foreseen(BASE | {"mode": "example-dp", "noise_multiplier": 1.0, "delta": 1e-4}, rows={"a": 40, "b": 4000})
    small, large = cost["by_rows"]
    assert (small["rows"], large["rows"]) == (40, 4000)
    assert small["epsilon"] == cost["epsilon"] > 10 * large["epsilon"]
    (line,) = [x for x in privacy_lines.lines(cost) if x.startswith("clients")]
    assert f"40 rows: {small['epsilon']:.3g}, 4,000 rows: " in line
    own = foreseen(BASE | {"mode": "example-dp", "epsilon": 8.0, "delta": 1e-4}, rows={"a": 40, "b": 400})
    (line,) = [x for x in privacy_lines.lines(own) if x.startswith("clients")]
    assert f"40 rows: z {own['noise_multiplier']:.3g}, " in line
    assert cost["numbers"] == 64 * 8


def test_a_server_that_knows_no_rows_says_why_it_says_no_epsilon() -> None:
    cost = foreseen(BASE | {"mode": "zo-dp", "noise_multiplier": 1.0}, "fedkseed", {"a": None, "b": None})
    assert cost["epsilon"] is None
    assert "known to them alone" in privacy_lines.lines(cost)[0]


def test_seeded_noise_says_that_there_is_no_epsilon() -> None:
    cost = foreseen(BASE | {"mode": "central-dp", "noise_multiplier": 1.0, "noise": "seeded"})
    assert (cost["epsilon"], cost["epsilon_why"]) == (None, "seeded noise")
    assert privacy_lines.lines(cost)[0].endswith("epsilon none (seeded noise)")


def test_a_pool_of_scalars_gets_noise_on_its_numbers_not_on_the_models() -> None:
    """1.6: z sqrt(K), whatever the size of the model; zeroth-order noise is one number a step."""
    pool = foreseen(BASE | {"mode": "central-dp", "noise_multiplier": 1.0}, "fedkseed")
    assert pool["numbers"] == 4096
    steps = foreseen(BASE | {"mode": "zo-dp", "noise_multiplier": 1.0}, "fedkseed")
    assert steps["noise_to_signal"] == pytest.approx(1 / 8)


def test_a_budget_that_ends_the_run_says_after_which_round() -> None:
    said = BASE | {"mode": "central-dp", "noise_multiplier": 2.0}
    whole = foreseen(said)
    assert whole["ends"] is None
    assert foreseen(said | {"max_epsilon": whole["epsilon"] + 0.01})["ends"] is None
    half = whole["after"][1][1]
    cost = foreseen(said | {"max_epsilon": half + 1e-6})
    assert cost["ends"] == 5
    assert "         [privacy] max_epsilon ends the run after 5 rounds" in privacy_lines.lines(cost)
    assert foreseen(said | {"max_epsilon": 1e-3})["ends"] == 0


def test_noisy_measures_cost_at_a_server_and_not_in_a_simulation() -> None:
    config = run_file.from_dict({
        "strategy": {"name": "ffa_lora"}, "server": {"rounds": 10},
        "privacy": BASE | {"mode": "central-dp", "noise_multiplier": 2.0, "evaluate": "noisy"},
    })  # fmt: skip
    recipe, rows = strategies.of(config), {"a": 9, "b": 9}
    both = [foreseen_privacy.of_run(config, recipe, LAYOUT, rows, deployed=d)["epsilon"] for d in (True, False)]
    assert both[0] > both[1]
    said = replace(config, privacy=replace(config.privacy, noise_multiplier=None, epsilon=8.0))
    found = [foreseen_privacy.of_run(said, recipe, LAYOUT, rows, deployed=d) for d in (True, False)]
    assert found[0]["noise_multiplier"] == found[1]["noise_multiplier"], "a simulation has its deployment's noise"
    assert found[1]["epsilon"] < found[0]["epsilon"] <= 8


def test_a_delta_that_is_too_large_is_refused_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"delta = 0\.5 is above 1 / 8, of 8 clients"):
        foreseen(BASE | {"mode": "central-dp", "noise_multiplier": 1.0, "delta": 0.5})
    with pytest.raises(ConfigError, match=r"1 / 800, of 800 records of c7"):
        foreseen(BASE | {"mode": "example-dp", "noise_multiplier": 1.0, "delta": 0.002})


@pytest.mark.parametrize("mode", ["central-dp", "local-dp", "example-dp"])
@pytest.mark.parametrize("z", [0.05, 0.7, 300.0])
def test_lines_fit_into_a_terminal(mode: str, z: float) -> None:
    secagg = {} if mode == "central-dp" else {"secagg": "on", "range": 1.0}
    said = privacy_lines.lines(foreseen(BASE | {"mode": mode, "noise_multiplier": z} | secagg))
    assert len(said) >= 3
    for line in said:
        assert len(line) <= 80, line


def test_a_header_has_these_lines_and_headers_of_before_have_none(tmp_path: Path) -> None:
    before = {
        "model": "m", "parameters": 9, "trainable": 3, "ranks": [8], "asked": 2, "clients": 2, "dtype": "float32",
        "device": "cpu", "adapter": "lora", "strategy": "ffa_lora", "train_rows": 4, "held_out_rows": 2, "cut": 0,
        "left_out": 0, "max_length": 64, "bytes_up": 1, "bytes_down": 1, "steps": 2, "disk": 3,
    }  # fmt: skip
    cost = foreseen(BASE | {"mode": "central-dp", "noise_multiplier": 4.0})
    assert privacy_lines.lines(cost)[0] in run_header.lines(before | {"privacy": cost})
    assert not any(line.startswith("privacy") for line in run_header.lines(before))


def test_evaluations_are_counted_as_a_server_makes_them() -> None:
    """Before the first round, then every so many and after the last."""
    config = run_file.from_dict(
        {
            "eval": {"every": 4},
            "server": {"rounds": 10},
            "privacy": BASE | {"mode": "central-dp", "noise_multiplier": 1.0, "evaluate": "noisy"},
        }
    )
    assert privacy_cost.scheduled(config, {"a": 1}, lambda r: ["a"]).measures == 2 * 4
