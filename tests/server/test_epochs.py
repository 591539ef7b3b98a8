"""`[local] epochs`: each client takes the steps that its own rows are, wherever that is said."""

import pytest

from fedft import run_file, strategies
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.simulations import idle_options
from fedft.simulations import run as runs


def test_steps_are_those_that_hold_the_rows_so_often() -> None:
    local = Local(epochs=0.5, batch_size=4)
    assert [local.steps_over(n) for n in (1, 8, 9, 80)] == [1, 1, 2, 10]
    assert Local(steps=7).steps_over(80) == 7


@pytest.mark.parametrize("together", [1, 2])
def test_a_client_with_more_rows_takes_more_steps(tiny_base, tmp_path, together: int) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.epochs=1", "local.batch_size=50", "server.rounds=2"]
    sets += ["strategy.name=fedit", "eval.max_rows=2", "server.loggers=[]", f"server.together={together}"]
    steps: dict[str, set[float]] = {}

    def observe(kind: str, info: dict) -> None:
        if kind == "admitted":
            steps.setdefault(info["client"], set()).add(info["metrics"]["steps"])

    runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "run", observe=observe)
    taken = [*steps.values()]
    assert [len(s) for s in taken] == [1, 1]  # the same in both rounds
    assert taken[0] != taken[1]


def test_what_makes_no_sense_is_one_line() -> None:
    config = run_file.load(None, ["strategy.name=mezo", "local.epochs=1"])
    with pytest.raises(ConfigError, match="epochs: mezo does not back-propagate"):
        strategies.of(config)
    with pytest.raises(ConfigError, match="budget: steps are unlike from client to client"):
        run_file.load(None, ["local.epochs=1", "server.budget='steps=40'"])


def test_steps_beside_epochs_are_said_to_be_idle() -> None:
    config = run_file.load(None, ["local.epochs=1", "local.steps=3"])
    said = idle_options.lines(config, strategies.of(config), clients=3, measured=3)
    assert any("[local] steps = 3 has no effect: epochs = 1" in line for line in said)
