"""The contract of a transform of uploads (`fedft.contract.Transform`), in the chain of a plain strategy."""

from dataclasses import replace

import torch

from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.contract import STAGES, Trained, Transform
from fedft.recipe import Recipe
from fedft.suites.promises import kept
from fedft.suites.toy import RUN, Ready, Toy, data_of, toy
from fedft.update import Update
from fedft.wire import messages


def _recipe(transform: Transform) -> Recipe:
    return Recipe("plain", LoRA(), uploads=(transform,), keeps=transform.keeps)


def _turn(transform: Transform) -> tuple[Toy, Trained, Trained]:
    """(toy, what local steps gave, what goes on)."""
    t = toy(_recipe(transform))
    turn = t.turn(t.plan(t.state(), 0), 0)
    trained = t.recipe.local(t.handle, Ready(data_of(0)), turn)
    return t, trained, transform.apply(trained, turn, t.handle)


def _its_stage_is_one_of_the_chain_s(transform: Transform) -> None:
    assert transform.stage in STAGES, f"stage is {transform.stage!r}, wanted one of {', '.join(STAGES)}"


def _what_goes_on_fits_the_wire(transform: Transform) -> None:
    t, trained, after = _turn(transform)
    plan = t.plan(t.state(), 0)
    sent = Update(after.delta, 1, run=RUN)
    got = messages.decode_update(messages.encode_update(sent, "fp32"), t.recipe.spec(t.layout, plan), "fp32")
    assert got.delta.keys() == trained.delta.keys(), "other names than were trained"


def _nothing_is_changed_in_place(transform: Transform) -> None:
    t = toy(_recipe(transform))
    turn = t.turn(t.plan(t.state(), 0), 0)
    trained = t.recipe.local(t.handle, Ready(data_of(0)), turn)
    before = tensors.digest(trained.delta)
    transform.apply(trained, turn, t.handle)
    assert tensors.digest(trained.delta) == before, "the result it was given has changed"


def _a_change_that_is_not_finite_stays_so(transform: Transform) -> None:
    """The server refuses it, and so hears of it; or the turn is refused here."""
    t = toy(_recipe(transform))
    turn = t.turn(t.plan(t.state(), 0), 0)
    trained = t.recipe.local(t.handle, Ready(data_of(0)), turn)
    poisoned = {n: torch.full_like(x, float("nan")) for n, x in trained.delta.items()}
    try:
        after = transform.apply(trained._replace(delta=poisoned), turn, t.handle)
    except FloatingPointError:
        return
    assert not all(bool(torch.isfinite(x).all()) for x in after.delta.values()), "NaN became numbers"


def _what_is_kept_is_declared_and_stays(transform: Transform) -> None:
    _, trained, after = _turn(transform)
    new = after.kept.keys() - trained.kept.keys()
    assert transform.keeps or not new, f"it keeps {sorted(new)}, which is not declared"
    assert after.kept.keys() >= trained.kept.keys(), "what others keep is gone"
    assert all("/" not in owner for owner in new), "an owner's name has a slash"


def _a_run_goes_on_with_it(transform: Transform) -> None:
    t = toy(_recipe(transform))
    state = t.state()
    for _ in range(2):
        state = t.step(state, [replace(t.update(state, k), metrics={}) for k in range(len(t.ranks))])
    assert all(bool(torch.isfinite(x).all()) for x in state.tensors.values()), "the state is not finite"


PROMISES = {
    "its stage is one of the chain's": _its_stage_is_one_of_the_chain_s,
    "what goes on fits the wire": _what_goes_on_fits_the_wire,
    "nothing is changed in place": _nothing_is_changed_in_place,
    "a change that is not finite stays so, or the turn is refused": _a_change_that_is_not_finite_stays_so,
    "what is kept is declared, and what others keep stays": _what_is_kept_is_declared_and_stays,
    "a run goes on with it": _a_run_goes_on_with_it,
}


def transform_contract(transform: Transform, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `transform`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, transform, type(transform).__name__, stop=stop)
