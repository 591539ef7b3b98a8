"""The best state and patience are functions of the lines of metrics.jsonl."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from deployed import Deployment, Killed, kill_at

from fedft.config import Eval, Local, Privacy, RunConfig, Server
from fedft.errors import ConfigError
from fedft.reports import columns
from fedft.server import best_state, budget


def run(best: str | None = "loss", **server: Any) -> RunConfig:
    return RunConfig(server=Server(rounds=99, **server), eval=Eval(best=best))


def lines(values: Sequence[float | None], name: str = "loss") -> list[dict[str, Any]]:
    """A line per value, the first of version 0; None: not measured."""
    return [{"version": n, **({} if x is None else {name: x})} for n, x in enumerate(values)]


def test_the_first_of_equal_states_is_the_best() -> None:
    assert best_state.best(run(), lines([3.0, 1.0, 1.0, 2.0])) == (1, 1.0)
    assert best_state.best(run("accuracy"), lines([0.1, 0.5, 0.5, 0.2], "accuracy")) == (1, 0.5)


def test_states_that_were_not_measured_count_for_nothing() -> None:
    found = lines([3.0, None, None, 2.0, None])
    assert best_state.best(run(), found) == (3, 2.0)
    assert best_state.best(run(), lines([None])) is None
    assert best_state.evaluations_since(run(patience=1), found) == 0


def test_without_best_and_patience_nothing_is_kept() -> None:
    assert best_state.measure(run(None)) is None
    assert best_state.best(run(None), lines([3.0, 1.0])) is None
    assert best_state.measure(run(None, patience=3)) == "loss"
    assert best_state.measure(run("accuracy", patience=3)) == "accuracy"


def ends_at(config: RunConfig, values: Sequence[float], name: str = "loss") -> int | None:
    found = lines(values, name)
    return next((n for n in range(len(found)) if best_state.over(config, found[: n + 1])), None)


@pytest.mark.parametrize(
    ("values", "patience", "delta", "end"),
    [
        ([3.0, 2.0, 2.5, 2.4], 2, 0.0, 3),
        ([3.0, 2.0, 2.5, 1.9], 2, 0.0, None),
        ([3.0, 3.0], 1, 0.0, 1),  # the same again is not better
        ([3.0, 2.9, 2.8], 2, 0.5, 2),  # better by too little
        ([3.0, 2.8, 2.6, 2.4, 2.2], 3, 0.5, None),  # a little adds up: 2.4 is better than 3.0 by more than 0.5
        ([3.0], 1, 0.0, None),  # the first has none before it
    ],
)
def test_patience_ends_a_run_as_counted_by_hand(
    values: list[float], patience: int, delta: float, end: int | None
) -> None:
    config = run(patience=patience, min_delta=delta)
    assert ends_at(config, values) == end
    rising = run("accuracy", patience=patience, min_delta=delta)
    assert ends_at(rising, [-x for x in values], "accuracy") == end
    assert ends_at(run(), values) is None  # no patience, no end
    if end is not None:
        assert budget.over(config, lines(values)[: end + 1])
        assert best_state.may_end(config, lines(values)[:end])


def test_whoever_asks_knows_which_way_a_metric_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a process that has loaded no metrics, such as that of a queue of runs."""
    monkeypatch.setattr(columns, "_declared", {})
    config = replace(run("exact_match"), eval=Eval(best="exact_match", metrics=["exact_match"]))
    assert best_state.best(config, lines([0.1, 0.5, 0.2], "exact_match")) == (1, 0.5)


def test_what_is_not_measured_at_every_evaluation_is_refused_in_one_line() -> None:
    for name in ("exact_match", "no_such", "rouge_l"):
        with pytest.raises(ConfigError, match=name) as refused:
            best_state.check(run(name), deployed=False)
        assert "\n" not in str(refused.value)
    for name in ("loss", "accuracy", "perplexity", "token_loss"):
        best_state.check(run(name), deployed=False)
    best_state.check(replace(run("margin"), local=Local(objective="dpo")), deployed=False)


def test_what_a_deployment_hides_cannot_choose_its_state() -> None:
    secret = replace(run(), privacy=Privacy(secagg="on"))
    best_state.check(secret, deployed=False)
    with pytest.raises(ConfigError, match=r"\[eval\] best.*summed"):
        best_state.check(secret, deployed=True)
    summed = replace(secret, privacy=replace(secret.privacy, evaluate="summed"))
    best_state.check(summed, deployed=True)
    with pytest.raises(ConfigError, match="token_loss is hidden"):
        best_state.check(replace(summed, eval=Eval(best="token_loss")), deployed=True)
    hidden = replace(run(None, patience=2), privacy=Privacy(mode="central-dp", clip=1.0, noise_multiplier=1.0))
    with pytest.raises(ConfigError, match=r"\[server\] patience.*noisy"):
        best_state.check(hidden, deployed=True)
    noisy = replace(hidden, privacy=replace(hidden.privacy, evaluate="noisy"))
    best_state.check(noisy, deployed=True)
    with pytest.raises(ConfigError, match="perplexity is hidden"):
        best_state.check(replace(noisy, eval=Eval(best="perplexity")), deployed=True)
    for mode, secagg in (("local-dp", "off"), ("example-dp", "off"), ("central-dp", "on")):
        unmeasured = replace(run(), privacy=Privacy(mode, clip=1.0, noise_multiplier=1.0, secagg=secagg))  # type: ignore[arg-type]
        best_state.check(unmeasured, deployed=False)
        with pytest.raises(ConfigError, match=f"{mode}' are not measured"):
            best_state.check(unmeasured, deployed=True)


NEVER = {"rounds": 4, "patience": 2, "min_delta": 1e9}
"""No state is better than the first by so much."""


def test_a_deployment_ends_with_its_patience_however_often_it_is_killed(tmp_path: Path) -> None:
    whole = Deployment(tmp_path / "whole", **NEVER)
    state = whole.run()
    assert state.version == 2
    assert [line["version"] for line in whole.metrics.lines] == [0, 1, 2]
    for at, number in (("line", 1), ("measured", 2), ("line", 2)):
        killed = Deployment(tmp_path / f"{at}-{number}", **NEVER)
        kill_at(killed, at, number)
        with pytest.raises(Killed):
            killed.run()
        again = Deployment(tmp_path / f"{at}-{number}", sites=killed.sites, **NEVER).run()
        assert (again.version, again.digest) == (2, state.digest)
    more = Deployment(tmp_path / "whole", sites=whole.sites, **{**NEVER, "patience": 4}).run()
    assert more.digest == Deployment(tmp_path / "plain", rounds=4).run().digest, "it goes on as if it had never ended"


def test_the_best_state_stays_in_a_deployment(tmp_path: Path) -> None:
    run = Deployment(tmp_path, rounds=9, **{k: NEVER[k] for k in ("min_delta",)}, patience=99)
    measured, state = run.loop.metrics, run.run()
    version, _ = best_state.best(run.config, measured.lines) or (None, None)
    assert version is not None
    assert run.store.pinned == version
    stored = run.store.state(version)
    assert stored is not None
    assert stored.digest == measured.lines[version]["state_digest"]
    assert state.version == 9
