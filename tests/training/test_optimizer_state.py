"""What an optimiser remembers goes on in the client's next round: two rounds are then one of both rounds' steps."""

from dataclasses import replace

import pytest
import torch

from fedft import run_file, strategies, testing
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.simulations import run as runs
from fedft.training import optimizer_state
from fedft.training.optimizers import optimizer_of


def steps(p: torch.nn.Parameter, optimizer: torch.optim.Optimizer, n: int) -> None:
    for k in range(n):
        p.grad = torch.sin(p.detach() + k)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "adafactor", "adagrad", "muon", "radam"])
def test_two_rounds_are_one_of_both_rounds_steps(name: str) -> None:
    local = Local(optimizer=name)
    whole, halves = (torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)) for _ in range(2))
    one = optimizer_of([whole], 0.1, local)
    steps(whole, one, 3)
    steps(whole, one, 3)
    first = optimizer_of([halves], 0.1, local)
    steps(halves, first, 3)
    kept = optimizer_state.taken(first, {"w": halves})
    assert kept
    second = optimizer_of([halves], 0.1, local)
    optimizer_state.restore(second, {"w": halves}, kept)
    steps(halves, second, 3)
    assert torch.equal(whole, halves)


def test_muon_goes_on_with_matrices_and_with_the_rest() -> None:
    """It is two optimisers then, a head's bias being no matrix."""

    def step(optimizer: torch.optim.Optimizer, live: dict[str, torch.nn.Parameter]) -> None:
        for p in live.values():
            p.grad = torch.cos(p.detach())
        optimizer.step()

    def begun() -> dict[str, torch.nn.Parameter]:
        return {"w": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3)), "b": torch.nn.Parameter(torch.arange(3.0))}

    whole, halves, local = begun(), begun(), Local(optimizer="muon")
    one, first = (optimizer_of([*live.values()], 0.1, local) for live in (whole, halves))
    for _ in range(2):
        step(one, whole)
    step(first, halves)
    kept = optimizer_state.taken(first, halves)
    second = optimizer_of([*halves.values()], 0.1, local)
    optimizer_state.restore(second, halves, kept)
    step(second, halves)
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_what_does_not_learn_in_a_round_goes_on_in_the_next_one_where_it_does() -> None:
    """Two tensors learn, then one alone, then both: the other's moments are those of two steps of its own."""

    def optimizer(live: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
        return optimizer_of([*live.values()], 0.1, Local())

    both = {n: torch.nn.Parameter(torch.arange(4.0)) for n in ("v", "w")}
    alone = torch.nn.Parameter(torch.arange(4.0))
    own = optimizer({"w": alone})
    steps(alone, own, 2)
    kept: dict[str, torch.Tensor] = {}
    for live in (both, {"v": both["v"]}, both):
        now = optimizer(live)
        optimizer_state.restore(now, live, kept)
        for n, p in live.items():
            p.grad = torch.sin(p.detach() + int("w/step" in kept)) if n == "w" else torch.ones(4)
        now.step()
        kept = optimizer_state.taken(now, live, kept)
    assert torch.equal(both["w"], alone)
    assert kept["w/step"] == 2
    assert kept["v/step"] == 3


@pytest.mark.parametrize("name", ["rolora", "fedit"])
def test_a_turn_keeps_the_moments_of_a_factor_that_stood_still(name: str) -> None:
    t = testing.toy(strategies.of(run_file.from_dict({"strategy": {"name": name}, "local": {"keep_optimizer": True}})))
    state, sizes = t.state(), []
    for _ in range(3):
        plan = replace(t.plan(state, 0), chosen=("second",) if name == "fedit" and state.version == 1 else ())
        turn = t.turn(plan, 0)
        turn = replace(turn, local=replace(turn.local, keep_optimizer=True))
        trained = t.recipe.local(t.handle, testing.Ready(testing.data_of(0)), turn)
        t.kept[0, state.version] = trained.kept
        sizes.append({n.rpartition("/")[0] for n in trained.kept[optimizer_state.OWNER]})
        state = replace(state, version=state.version + 1)
    assert sizes[0] <= sizes[1] == sizes[2]
    assert len(sizes[2]) == 4


def test_a_tensor_of_another_rank_begins_anew() -> None:
    p, q = torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4, 3))
    before = optimizer_of([p], 0.1, Local())
    steps(p, before, 2)
    after = optimizer_of([q], 0.1, Local())
    optimizer_state.restore(after, {"w": q}, optimizer_state.taken(before, {"w": p}))
    assert not after.state
    steps(q, after, 1)


def test_a_run_with_it_differs_and_resumes_to_the_same_bytes(tiny_base, tmp_path) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.steps=2", "server.loggers=[]", "strategy.name=fedit"]
    sets += ["eval.max_rows=2"]

    def run(name: str, *more: str) -> str:
        done = runs.simulate(run_file.load(runs.QUICKSTART, [*sets, *more]), out=tmp_path / name)
        return done.summary["state_sha256"] if "state_sha256" in done.summary else done.summary["final"]["loss"]

    fresh = run("fresh", "server.rounds=3")
    kept = run("kept", "server.rounds=3", "local.keep_optimizer=true")
    assert kept != fresh
    run("cut", "server.rounds=2", "local.keep_optimizer=true")
    config = run_file.load(runs.QUICKSTART, [*sets, "server.rounds=3", "local.keep_optimizer=true"])
    done = runs.simulate(config, out=tmp_path / "cut", resume=True)
    assert done.summary["final"]["loss"] == runs.simulate(config, out=tmp_path / "again").summary["final"]["loss"]


@pytest.mark.parametrize(
    ("name", "why"), [("mezo", "does not back-propagate"), ("flora", "begin each round from a draw")]
)
def test_methods_whose_moments_would_mean_nothing_have_none(name: str, why: str) -> None:
    with pytest.raises(ConfigError, match=f"keep_optimizer: .*{why}"):
        strategies.of(run_file.load(None, [f"strategy.name={name}", "local.keep_optimizer=true"]))


def test_an_optimizer_that_holds_the_iterates_themselves_is_not_kept() -> None:
    """The first step would put a client back to where it ended, whatever the server sent since."""
    pytest.importorskip("schedulefree")
    with pytest.raises(ConfigError, match="keep_optimizer: schedule_free_sgd would begin each round at the iterates"):
        strategies.of(
            run_file.load(
                None, ["strategy.name=fedit", "local.optimizer=schedule_free_sgd", "local.keep_optimizer=true"]
            )
        )
