"""Learning rates along a run and along a round: transformers' own curves, and where they take effect."""

import pytest
import torch
import transformers

from fedft import run_file, strategies
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.simulations import run as runs
from fedft.training import first_order, schedules
from fedft.update import Plan


def theirs(name: str, warm: int, n: int) -> list[float]:
    """The factors of transformers' scheduler behind the warm-up, where both count the same."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = transformers.get_scheduler(name, optimizer, num_warmup_steps=warm, num_training_steps=n)
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize(("warmup", "n"), [(0.0, 7), (0.25, 8), (0.1, 20)])
def test_the_curves_are_those_of_transformers(name: str, warmup: float, n: int) -> None:
    local, warm = Local(schedule=name, warmup=warmup), round(warmup * n)
    ours = [schedules.factor(local, k, n) for k in range(n)]
    assert ours[warm:] == pytest.approx(theirs(name, warm, n)[warm:])
    assert ours[:warm] == pytest.approx([(k + 1) / (warm + 1) for k in range(warm)])  # theirs begins at 0: a lost step


def test_without_a_schedule_nothing_moves() -> None:
    local = Local(learning_rate=0.1, learning_rate_decay=0.5)
    assert [schedules.of_round(local, k, 3) for k in range(3)] == [0.1, 0.05, 0.025]
    assert not schedules.moves_in_rounds(Local(schedule="linear"))
    assert schedules.moves_in_rounds(Local(warmup=0.1, schedule_over="round"))


def test_within_a_round_every_step_has_its_own_rate() -> None:
    class Turn:
        local = Local(schedule="linear", schedule_over="round")
        plan = Plan("", 0, 0, steps=4, learning_rate=0.8)

    optimizer, seen = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8), []
    for step in range(4):
        first_order.set_rate(optimizer, Turn, step)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("over", ["run", "round"])
def test_a_run_moves_less_under_a_schedule_and_the_same_together(tiny_base, tmp_path, over: str) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.steps=4", "server.rounds=2", "server.loggers=[]"]
    sets += ["strategy.name=fedit", "eval.max_rows=2", "local.optimizer=sgd", "local.learning_rate=0.5"]
    found = []
    for k, more in enumerate(([], ["local.schedule=linear"], ["local.schedule=linear", "server.together=2"])):
        config = run_file.load(runs.QUICKSTART, [*sets, *more, f"local.schedule_over={over}"])
        done = runs.simulate(config, out=tmp_path / str(k))
        found.append([line["loss"] for line in done.lines if "loss" in line])
    assert found[1][-1] > found[0][-1]  # smaller steps: less learned
    assert found[2] == pytest.approx(found[1], rel=1e-4)


def test_methods_that_do_not_back_propagate_have_no_schedule_within_a_round() -> None:
    config = run_file.load(None, ["strategy.name=fedkseed", "local.schedule=cosine", "local.schedule_over=round"])
    with pytest.raises(ConfigError, match="schedule_over = 'round': fedkseed does not back-propagate"):
        strategies.of(config)
