"""What is reported is what is left: of every strategy, the loss of the summary is that of the model in the run folder.

By four ways on the same rows: `summary.json`, `fedft eval`, plain peft on `model/`, plain transformers on the merged
export. The last two know nothing of fedft but the token ids of the rows.
"""

from pathlib import Path

import pytest
from exported_models import loss_of

from fedft import registry, run_file
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs

CLOSE = 1e-4
RANKS = dict.fromkeys(("flora", "hetlora", "flexlora"), "[2, 8]")
OPTIONS = {
    "fedkseed": ["strategy.K=64", "local.learning_rate=1e-3", "local.steps=30"],
    "ferret": ["strategy.K=64"],
    "mezo": ["local.learning_rate=1e-3"],
    "zo_fedavg": ["local.learning_rate=1e-2", "local.steps=30"],
    "fedavg": ["local.learning_rate=1e-3"],
}
QUICK = (
    "hetlora",
    "flexlora",
    "flora",
    "fedsa_lora",
    "fedkseed",
)  # the others are like one of these, and take a minute


def settings(base: Path, strategy: str) -> list[str]:
    small = ["local.steps=3", "local.batch_size=4", "server.rounds=2", "data.clients=2", "data.max_length=48"]
    own = [f"strategy.name={strategy}", f"clients.rank={RANKS.get(strategy, '4')}", *OPTIONS.get(strategy, ())]
    return [f"model.id='{base}'", "eval.max_rows=4", "server.loggers=[]", *small, *own]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in registry.BUILT_IN]
)
def test_the_loss_reported_is_that_of_the_model_that_is_left(tiny_base: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = runs.simulate(run_file.load(runs.QUICKSTART, settings(tiny_base, name)), out=tmp_path / "run")
    reported = run.summary["final"]["loss"]
    assert reported != pytest.approx(run.summary["initial"]["loss"], abs=10 * CLOSE), "a run that learns nothing"
    evaluated, mean = finished_run.evaluate_run(run.folder)
    assert mean["loss"] == pytest.approx(reported, abs=CLOSE)
    place, _ = workplace.reopen(run.folder)
    merged, adapted = {}, {}
    for client in place.clients:
        rows = list(place.clients[client].test_rows[:4])
        own, to = (client if place.recipe.personal else None), tmp_path / client
        finished_run.export_run(run.folder, to / "merged", merged=True, client=own)
        merged[client] = loss_of(AutoModelForCausalLM.from_pretrained(to / "merged"), rows)
        folder = run.model
        if own:
            finished_run.export_run(run.folder, to / "adapter", client=own)
            folder = to / "adapter"
        if (folder / "adapter_config.json").exists():
            base = AutoModelForCausalLM.from_pretrained(tiny_base)
            adapted[client] = loss_of(PeftModel.from_pretrained(base, str(folder)), rows)
    losses = {c: m["loss"] for c, m in evaluated.items()}
    assert merged == pytest.approx(losses, abs=CLOSE)
    assert adapted == (pytest.approx(losses, abs=CLOSE) if adapted else {})
    assert bool(adapted) == (not place.recipe.space.of_base)


@pytest.mark.parametrize("name", ["hetlora", "flexlora"])
def test_clients_that_hold_a_part_of_the_state_say_what_it_is_worth_too(
    tiny_base: Path, tmp_path: Path, name: str
) -> None:
    """Their own loss stands beside the model's; who holds all of it has one for both. Alike ranks have one loss."""
    run = runs.simulate(run_file.load(runs.QUICKSTART, settings(tiny_base, name)), out=tmp_path / "run")
    found = run.lines[-1]["evaluation"]
    small, large = found["asyncio"], found["email"]
    assert small["own_loss"] != pytest.approx(small["loss"], abs=1e-6)
    assert large["own_loss"] == large["loss"]
    assert run.summary["final"]["own_loss"] == pytest.approx((small["own_loss"] + large["own_loss"]) / 2)
    assert run.summary["columns"]["own_loss"]["heading"] == "own loss"
    never_shrinks = ["strategy.penalty=0.0"] if name == "hetlora" else []
    alike = run_file.load(runs.QUICKSTART, [*settings(tiny_base, name), "clients.rank=4", *never_shrinks])
    assert "own_loss" not in runs.simulate(alike, out=tmp_path / "alike").summary["final"]
