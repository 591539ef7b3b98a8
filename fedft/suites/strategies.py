"""The contract every strategy keeps, on a model small enough to check in a second (`toy.py`).

    from fedft.testing import strategy_contract
    def test_mine(): strategy_contract(mine(beta=0.9))

`fedft check-strategy NAME` prints the same list. What an algorithm computes is for its own tests; this is what the
engine, the wire, resuming and a deployment rely on.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial, reduce
from itertools import product

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.suites.promises import kept
from fedft.suites.toy import CLIENTS, toy
from fedft.suites.unlike_bases import tolerated
from fedft.wire import messages
from fedft.wire.table import check_download, describe

CLOSE = 1e-5  # of float32 numbers that were summed in another order, relative to the largest


def _same_seed_same_bytes(recipe: Recipe, clients: int = CLIENTS) -> None:
    a, b = toy(recipe, clients), toy(recipe, clients)
    assert tensors.digest(a.state().tensors) == tensors.digest(b.state().tensors), "version 0 differs"
    assert tensors.digest(a.update(a.state(), 1).delta) == tensors.digest(b.update(b.state(), 1).delta), (
        "update differs"
    )


def _uploads_fit_their_spec_and_the_wire(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    for client in range(len(t.ranks)):
        sent, plan = t.update(t.state(), client), t.plan(t.state(), client)
        spec = recipe.spec(t.layout, plan)
        got = messages.decode_update(messages.encode_update(sent, "fp32"), spec, "fp32")
        assert tensors.digest(got.delta) == tensors.digest(sent.delta), "fp32 is not exact on the wire"
        for name in messages.CODECS:  # an honest client is admitted whatever the precision
            recipe.admit(messages.decode_update(messages.encode_update(sent, name), spec, name).delta, plan)


def _a_late_joiner_stands_where_a_veteran_stands(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    state = t.state()
    held = State(0, t.turn(t.plan(state, 0), 0).held)
    for _ in range(7):
        state = t.step(state, [t.update(state, k) for k in range(len(t.ranks))])
        held = State(state.version, t.turn(t.plan(state, 0, held.version), 0, held).held)
    newcomer = t.turn(t.plan(state, 0), 0).held
    assert tensors.digest(newcomer) == tensors.digest(held.tensors), "they hold different tensors"
    lagging = t.turn(t.plan(state, 0, state.version), 0, held).held
    assert tensors.digest(lagging) == tensors.digest(newcomer), "a client that lacks nothing was moved"


def _the_order_of_replies_does_not_matter(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    updates = [t.update(t.state(), k) for k in range(len(t.ranks))]
    forth = t.outputs(t.step(t.state(), updates))
    back = t.outputs(t.step(t.state(), updates[::-1]))
    assert _close(forth, back), "reversed replies give another model"


def _updates_are_read_once_and_nothing_is_changed_in_place(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    state = t.state()
    updates = [t.update(state, k) for k in range(len(t.ranks))]
    before = [tensors.digest(u.delta) for u in updates], tensors.digest(dict(state.tensors))
    t.step(state, updates)  # hands over an iterator: a second reading would find nothing
    assert before == ([tensors.digest(u.delta) for u in updates], tensors.digest(dict(state.tensors))), (
        "changed in place"
    )


def _learning_rate_zero_changes_nothing(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    base = t.outputs(t.state(), lr=0.0).clone()
    after = t.step(t.state(), [t.update(t.state(), k, lr=0.0) for k in range(len(t.ranks))])
    assert torch.equal(t.outputs(after, lr=0.0), base), "the model moved"


def _the_state_survives_the_disk_and_a_restart(recipe: Recipe, clients: int = CLIENTS) -> None:
    from safetensors.torch import load, save

    t = toy(recipe, clients)
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(len(t.ranks))])
    own = tensors.drawers_of(load(save(tensors.in_one({"": state.tensors, **state.own}))))
    again = State(state.version, own.pop("", {}), own)
    assert again.digest == state.digest, "saving changed the state"
    fresh = toy(recipe, clients)
    fresh.kept.update(t.kept)
    assert torch.equal(t.outputs(state), fresh.outputs(again)), "a restarted client computes something else"


def _training_lowers_the_loss(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    state = t.state()
    before = t.loss(state)
    for _ in range(8):
        state = t.step(state, [t.update(state, k, lr=0.02, steps=20) for k in range(len(t.ranks))])
    after = t.loss(state)
    assert after < before, f"loss went from {before:.4f} to {after:.4f} in 8 rounds"


def _a_linear_strategy_adds_up(recipe: Recipe, clients: int = CLIENTS) -> None:
    if not recipe.linear:
        return
    t = toy(recipe, clients)
    a, b = t.update(t.state(), 0), t.update(t.state(), 1)
    both, p = recipe.aggregate([a, b]), a.num_examples / (a.num_examples + b.num_examples)
    parts = tensors.add(tensors.scale(recipe.aggregate([a]), p), tensors.scale(recipe.aggregate([b]), 1 - p))
    assert all(_close(both[n], parts[n]) for n in both), "declared linear, yet parts do not add up to the whole"


def _a_misfit_is_refused(recipe: Recipe, clients: int = CLIENTS) -> None:
    t = toy(recipe, clients)
    good, plan = t.update(t.state(), 0), t.plan(t.state(), 0)
    spec = recipe.spec(t.layout, plan)
    name = sorted(good.delta)[0]
    lacking = {n: x for n, x in good.delta.items() if n != name}
    poisoned = {n: x.clone() for n, x in good.delta.items()}
    for x in poisoned.values():
        if x.is_floating_point():
            x.fill_(float("nan"))
    for bad in (lacking, poisoned, {**good.delta, "stranger": torch.zeros(1)}):
        try:
            messages.decode_update(messages.encode_update(replace(good, delta=bad), "fp32"), spec, "fp32")
        except (RejectedUpdate, ValueError):
            continue
        raise AssertionError("an update that does not fit was taken")


def _what_is_private_never_travels(recipe: Recipe, clients: int = CLIENTS) -> None:
    """Neither what clients keep is in what they send, nor the server's own floats in what it sends."""
    t = toy(recipe, clients)
    state = t.state()
    for turn in range(3):
        updates = [t.update(state, k) for k in range(len(t.ranks))]
        # the first change of what is kept is a change from zero: the value itself
        sent = {_bytes_of(x) for u in updates for x in u.delta.values()} if turn else set()
        # one that sends whole values says so, and sends those of its spec
        said = set(updates[0].delta) if recipe.upload_kind == "values" else set()
        drawers = [d for of in t.kept.values() for d in of.values()]
        kept = {(n, _bytes_of(x)) for d in drawers for n, x in d.items() if x.any() and n not in said}
        assert not [n for n, x in kept if x in sent], f"{[n for n, x in kept if x in sent]}: kept, and sent"
        state = t.step(state, updates)
        down = {_bytes_of(x) for k in range(len(t.ranks)) for x in t.plan(state, k).tensors.values()}
        own = {(n, _bytes_of(x)) for d in state.own.values() for n, x in d.items() if x.is_floating_point() and x.any()}
        assert not [n for n, x in own if x in down], f"{[n for n, x in own if x in down]}: the server's own, and sent"


def _what_comes_down_is_what_it_says(recipe: Recipe, clients: int = CLIENTS) -> None:
    """For training and evaluation, whatever version a client holds."""
    t = toy(recipe, clients)
    state = t.state()
    for _ in range(4):
        for client, have, steps in product(range(len(t.ranks)), (None, *range(state.version + 1)), (4, 0)):
            plan = t.plan(state, client, have, steps=steps)
            try:
                check_download(describe(plan.tensors, "fp32"), recipe.downloads(t.layout, plan), "fp32")
            except RejectedUpdate as e:
                raise AssertionError(f"version {state.version} from {have}: {e}") from e
        state = t.step(state, [t.update(state, k) for k in range(len(t.ranks))])


def _bytes_of(x: Tensor) -> bytes:
    return x.detach().contiguous().numpy().tobytes()


def _it_learns_from_tokens(recipe: Recipe, clients: int = CLIENTS) -> None:
    """Rows of token labels, half of which are given: rounds are finite, and change what the model predicts."""
    t = toy(recipe, clients, tokens=True)
    state = t.state()
    before = t.loss(state)
    for _ in range(2):  # a first round may only measure
        updates = [t.update(state, k, lr=0.02, steps=20) for k in range(len(t.ranks))]
        assert all(math.isfinite(u.metrics["loss"]) for u in updates), "a client's loss is not finite"
        state = t.step(state, updates)
    after = t.loss(state)
    assert math.isfinite(after), "the loss of the next state is not finite"
    assert after != before, "nothing was learned"


def _sums_may_be_taken_elsewhere(recipe: Recipe, clients: int = CLIENTS) -> None:
    """aggregate(u_1 .. u_n) == aggregate([from_sum(sum_k p_k summand(u_k))]): what a guarded sum relies on."""
    if not recipe.linear:
        return
    t = toy(recipe, clients)
    state = t.state()
    plan, updates = t.plan(state, 0), [t.update(state, k) for k in range(len(t.ranks))]
    total = sum(u.num_examples for u in updates)
    terms = [tensors.scale(recipe.summand(u.delta, plan), u.num_examples / total) for u in updates]
    for term in terms:
        assert {n: x.shape for n, x in term.items()} == {n: x.shape for n, x in terms[0].items()}, "unlike summands"
    mean = reduce(tensors.add, terms)
    wanted = recipe.aggregate(iter(updates))
    found = recipe.aggregate(iter([replace(updates[0], delta=recipe.from_sum(mean, plan), num_examples=1)]))
    assert found.keys() == wanted.keys(), "other names"
    for n, x in wanted.items():
        apart = float((found[n].double() - x.double()).abs().max()) if x.numel() else 0.0
        assert apart <= 1e-5 * (1 + float(x.double().abs().max())), f"{n} is {apart:g} off"


def _close(x: Tensor, y: Tensor) -> bool:
    return bool((x - y).abs().max() <= CLOSE * (1 + x.abs().max())) if x.numel() else x.shape == y.shape


PROMISES: dict[str, Callable[..., None]] = {
    "same config and seed, same bytes": _same_seed_same_bytes,
    "uploads fit their spec and survive the wire": _uploads_fit_their_spec_and_the_wire,
    "a late joiner stands where a veteran stands, bit for bit": _a_late_joiner_stands_where_a_veteran_stands,
    "the order of replies does not matter": _the_order_of_replies_does_not_matter,
    "updates are read once and nothing is changed in place": _updates_are_read_once_and_nothing_is_changed_in_place,
    "a learning rate of zero leaves the model bit for bit": _learning_rate_zero_changes_nothing,
    "the state survives the disk and a restart": _the_state_survives_the_disk_and_a_restart,
    "training lowers the loss": _training_lowers_the_loss,
    "a linear strategy adds up": _a_linear_strategy_adds_up,
    "an update that does not fit is refused": _a_misfit_is_refused,
    "what is private never travels": _what_is_private_never_travels,
    "nothing comes down but what it says may": _what_comes_down_is_what_it_says,
    "it learns from token labels": _it_learns_from_tokens,
    "clients whose bases are of unlike precision stand alike, where it says so": tolerated,
    "the sum that a linear strategy needs may be taken elsewhere": _sums_may_be_taken_elsewhere,
}


def strategy_contract(recipe: Recipe, *, clients: int = CLIENTS, stop: bool = True) -> dict[str, str]:
    """Check every promise on `recipe`; returns {promise: "" or what broke it}.

    Args:
        recipe: the strategy, with its options.
        clients: how many take part, for strategies that need more of them.
        stop: raise the first failure as AssertionError.
    """
    checks = {promise: partial(check, clients=clients) for promise, check in PROMISES.items()}
    return kept(checks, recipe, recipe.name, stop=stop)
