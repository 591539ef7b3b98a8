"""Base models that stay loaded: runs that can share one do, and none sees what another run did to it."""

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import pytest
import torch
from deployed import ToyBase

from fedft import run_file, strategies, testing
from fedft.client import resident_models
from fedft.client.resident_models import ResidentModels
from fedft.config import RunConfig
from fedft.contract import Turn
from fedft.models.resident import Resident
from fedft.update import Plan

RUN = run_file.from_dict({"strategy": {"name": "fedit"}, "data": {"max_length": 96}, "server": {"seed": 7}})


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """Configs of the models that were loaded, each the toy's."""
    configs: list[RunConfig] = []

    def load(config: RunConfig, recipe: Any) -> Any:
        configs.append(config)
        toy = testing.toy(recipe)
        return Resident(ToyBase(), toy.layout, toy.handle)  # type: ignore[arg-type]

    monkeypatch.setattr(resident_models.resident, "load", load)
    return configs


def used(models: ResidentModels, config: RunConfig, user: Hashable = "a", gone: list[Hashable] | None = None) -> Any:
    left = [] if gone is None else gone
    return models.of(config, strategies.of(config), user, lambda: left.append(user))


def test_a_site_loads_again_for_another_objective_alone(loaded: list[RunConfig]) -> None:
    """A handle has its objective: a run with another one, or another beta, is not trained by the one before it."""
    models = ResidentModels()
    for objective in ("likelihood", "orpo", {"name": "orpo", "beta": 0.5}):
        for steps in (1, 2):
            used(models, replace(RUN, local=replace(RUN.local, objective=objective, steps=steps)))
    assert [c.local.objective for c in loaded] == ["likelihood", "orpo", {"name": "orpo", "beta": 0.5}]


def test_runs_that_differ_in_their_seed_share_a_model_unless_a_head_is_drawn_from_it(loaded: list[RunConfig]) -> None:
    models = ResidentModels()
    heads = replace(RUN, model=replace(RUN.model, task="sequence-classification"))
    for config, more in ((RUN, 0), (heads, 1)):
        before = len(loaded)
        for seed in (1, 2):
            used(models, replace(config, server=replace(config.server, seed=seed)))
        assert len(loaded) - before == 1 + more


@pytest.mark.parametrize("most", [1, 2])
def test_who_needs_another_model_makes_the_one_used_longest_ago_go(loaded: list[RunConfig], most: int) -> None:
    models, gone = ResidentModels(most), list[Hashable]()
    configs = {n: replace(RUN, data=replace(RUN.data, max_length=n)) for n in (32, 64, 96)}
    _, turn = used(models, configs[32], 32, gone)
    used(models, configs[32], "other run", gone)
    assert (len(loaded), gone) == (1, [])
    used(models, configs[64], 64, gone)
    assert gone == ([32, "other run"] if most == 1 else [])
    if most == 2:
        turn()  # the first is used again: the second is the older one now
        used(models, configs[96], 96, gone)
        assert gone == [64]


def test_a_run_does_not_train_on_a_base_that_another_runs_strategy_has_moved(loaded: list[RunConfig]) -> None:
    """FLoRA moves base weights, FedIT does not say where they are to be."""

    def stands_at(here: Resident, name: str, moved: bool) -> torch.Tensor:
        """The model's output where a client of the strategy begins, on a state of ones if it is `moved`."""
        recipe = strategies.make(name, {})
        state = recipe.first_state(here.layout, 2, testing.SEED)
        if moved:
            ones = {m: (torch.ones(1, i), torch.ones(o, 1)) for m, (o, i) in here.layout.modules.items()}
            held = {m + s: x for m, pair in ones.items() for s, x in zip((".lora_A", ".lora_B"), pair, strict=True)}
        else:
            held = dict(state.tensors)
        plan = Plan("a" * 16, 0, 0, rank=2, steps=1, learning_rate=0.01)
        recipe.start(here.handle, Turn(plan, held, name, RUN.local, testing.SEED, 1, {}))
        return here.handle.forward({"x": torch.ones(1, 8)}).logits.detach().clone()

    flora = replace(RUN, strategy=replace(RUN.strategy, name="flora"))
    models = ResidentModels()
    here, turn = used(models, RUN, "fedit")
    same, other_turn = used(models, flora, "flora")
    assert same is here
    turn()
    alone = stands_at(here, "fedit", moved=False)
    other_turn()
    moved = stands_at(here, "flora", moved=True)
    assert not torch.equal(moved, alone)
    assert not torch.equal(stands_at(here, "fedit", moved=False), alone)  # the turn is what undoes it
    turn()
    assert torch.equal(stands_at(here, "fedit", moved=False), alone)
    other_turn()
    assert torch.equal(stands_at(here, "flora", moved=True), moved)
