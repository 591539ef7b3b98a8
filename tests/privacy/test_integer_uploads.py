"""Every linear strategy by sums of integers: the mean is the mean, and what has no sum is refused before any work."""

from typing import Any

import numpy as np
import pytest
import torch

from fedft import run_file, strategies, testing
from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import ConfigError, RunPaused
from fedft.privacy.secure_sum.integer_uploads import RING, integers_of, of_ring
from fedft.privacy.secure_sum.reach import LOSS, reach
from fedft.recipe import Recipe
from fedft.server.guard import Sum
from fedft.server.integer_sum import CODE, IntegerSum, check_clients
from fedft.suites.toy import Toy
from fedft.update import Update
from fedft.wire import messages

STEPS, RATE = 4, 0.05  # of the toy's plans
LINEAR: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedavg of factors": {"name": "fedavg", "space": "lora"},
    "fedit": {},
    "fedprox": {"on": "fedit"},
    "ffa_lora": {},
    "rolora": {},
    "fedsa_lora": {},
    "fedopt on fedit": {"name": "fedopt", "on": "fedit"},
    "fedopt on ffa_lora": {"name": "fedopt", "on": "ffa_lora"},
    "fedkseed": {"K": 64, "scalar_clip": 4.0},
    "fedkseed that decays": {"name": "fedkseed", "K": 64, "scalar_clip": 4.0, "weight_decay": 0.1},
    "ferret": {"K": 64},
    "zo_fedavg": {"scalar_clip": 4.0},
}


def configured(of: str = "fedit", **privacy: Any) -> RunConfig:
    """A run file of one of LINEAR with secure sums of three clients."""
    strategy = {"name": of, **LINEAR.get(of, {})}
    tables: dict[str, Any] = {
        "strategy": strategy,
        "local": {"steps": STEPS, "learning_rate": RATE},
        "clients": {"rank": 2},
        "privacy": {"secagg": "clear", "min_cohort": 3, **({"range": 4.0} if of == "ferret" else {}), **privacy},
    }
    return run_file.from_dict(tables)


def both(of: str, **privacy: Any) -> tuple[RunConfig, Toy, Toy]:
    """(the run file, the toy with secure sums, the toy without)."""
    config = configured(of, **privacy)
    plain = strategies.make(config.strategy.name, config.strategy.options)
    return config, testing.toy(strategies.of(config)), testing.toy(plain)


def guarded(recipe: Recipe, t: Toy, state: State, updates: list[Update]) -> tuple[IntegerSum, Sum]:
    """The guard, and what it is to sum."""
    integers = integers_of(recipe)
    assert integers is not None
    names = [u.client for u in updates]
    plans = {c: t.plan(state, k) for k, c in enumerate(names)}
    of = Sum(recipe, t.layout, state, names, dict.fromkeys(names, 1), plans, lambda: iter(updates))
    return IntegerSum(integers), of


@pytest.mark.parametrize("of", LINEAR)
def test_two_rounds_of_integers_are_two_rounds_but_for_their_rounding(of: str) -> None:
    """Each client's error is below one step, so the mean's is; it would be equal clients' without rounding."""
    _, t, plain = both(of)
    inner = plain.recipe
    state = t.state()
    for _ in range(2):
        sent = [t.update(state, k, RATE, STEPS) for k in range(3)]
        exact = [plain.update(state, k, RATE, STEPS) for k in range(3)]
        plan = plain.plan(state, 0)
        spec = t.recipe.uploads[-1].spec(t.layout, plan)  # type: ignore[attr-defined]
        mean = {
            n: sum(inner.summand(u.delta, plan)[n].double() for u in exact) / 3
            for n in inner.summand(exact[0].delta, plan)
        }
        total = sum(of_ring(u.delta[RING]).astype(np.int64) for u in sent)
        at = 0
        for (name, shape), clip in zip(spec.tensors, spec.clips, strict=True):
            step, size = clip / spec.largest, int(np.prod(shape))
            found = torch.from_numpy(step * total[at : at + size] / 3).reshape(shape)
            wanted = mean.get(name, torch.zeros(shape, dtype=torch.float64))
            if name == LOSS:
                wanted = torch.tensor([sum(u.metrics["loss"] for u in exact) / 3 / 20], dtype=torch.float64)
            assert (found - wanted).abs().max() < step, name
            assert wanted.abs().max() <= clip, f"{name}: a bound that honest clients break"
            at += size
        assert at == len(total)
        guard, of_round = guarded(t.recipe, t, state, sent)
        change = guard.sum(of_round).change
        expected = inner.aggregate(iter([Update(u.delta, 1, client=u.client, roster=3) for u in exact]))
        for name, x in expected.items():
            torch.testing.assert_close(change[name], x, rtol=0, atol=2 * max(spec.clips) / spec.largest)
        plain.kept.update(t.kept)
        state = inner.next_state(state, change)
    assert state.version == 2


@pytest.mark.parametrize("ring", [16, 32])
def test_an_update_is_one_tensor_of_integers_and_says_nothing_else(ring: int) -> None:
    """As many bytes as the formula says: 4, or 2, for each number and for the loss."""
    _, t, plain = both("ffa_lora", ring_bits=ring, value_bits=10)
    u = t.update(t.state(), 0, RATE, STEPS)
    numbers = sum(x.numel() for x in plain.update(plain.state(), 0, RATE, STEPS).delta.values())
    assert list(u.delta) == [RING]
    assert u.delta[RING].dtype == (torch.int32 if ring == 32 else torch.uint16)
    assert u.metrics == {}
    assert u.delta[RING].nbytes == ring // 8 * (numbers + 1)
    spec = t.recipe.spec(t.layout, t.plan(t.state(), 0))
    again = messages.decode_update(messages.encode_update(u, "fp32"), spec, "fp32")
    assert torch.equal(again.delta[RING].view(torch.int16), u.delta[RING].view(torch.int16))
    assert np.abs(of_ring(u.delta[RING])).max() <= 511


def test_the_integers_of_a_turn_are_the_same_whenever_it_is_taken() -> None:
    _, t, _ = both("fedit")
    first, again, other = (t.update(t.state(), k, RATE, STEPS).delta[RING] for k in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_sum_that_no_clients_can_have_moves_nobody_and_soon_pauses_the_run() -> None:
    _, t, _ = both("fedit")
    sent = [t.update(t.state(), k, RATE, STEPS) for k in range(3)]
    sent[1].delta[RING][0] = 2**31 - 1
    guard, of = guarded(t.recipe, t, t.state(), sent)
    change, record = guard.sum(of)
    assert not any(x.any() for x in change.values())
    assert record == {"sum_refused": CODE}
    with pytest.raises(RunPaused, match="2 times in 5 rounds"):
        guard.sum(of)


def test_what_is_not_finite_is_not_sent() -> None:
    _, t, plain = both("fedit")
    integers = integers_of(t.recipe)
    assert integers is not None
    turn = t.turn(t.plan(t.state(), 0), 0)
    trained = plain.recipe.local(
        plain.handle, testing.Ready(testing.data_of(0)), plain.turn(plain.plan(plain.state(), 0), 0)
    )
    next(iter(trained.delta.values()))[0, 0] = float("nan")
    with pytest.raises(FloatingPointError):
        integers.apply(trained, turn, t.handle)


def test_how_far_a_number_goes_is_what_the_run_file_says_or_the_optimiser_allows() -> None:
    fedit = strategies.make("fedit", {})
    assert reach(configured(range=0.5), fedit, "q.lora_A", 2) == 0.5
    assert reach(configured(), fedit, "q.lora_A", 2) == pytest.approx(2 * RATE * STEPS)
    assert reach(configured(), fedit, "q.lora_B", 2) == pytest.approx(2 * 2 * RATE * STEPS)
    sgd = run_file.from_dict(
        configured().to_dict() | {"local": {"optimizer": "sgd", "momentum": 0.5, "steps": 3, "learning_rate": 0.1}}
    )
    assert reach(sgd, fedit, "q.lora_A", 2) == pytest.approx(0.1 * 3 * 1.0 / 0.5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a codec": ({"codec": {"up": "int8"}}, r"\[codec\] up = 'int8' and \[privacy\] secagg = 'on'"),
    "error feedback": (
        {"codec": {"up": "topk:0.1 | int8", "error_feedback": True}},
        r"\[codec\] up = 'topk:0.1 . int8' and \[privacy\] secagg",
    ),
    "a buffer": ({"server": {"buffer": 2}}, r"\[server\] buffer"),
    "no linear strategy": ({"strategy": {"name": "flora"}}, r"'flora' and \[privacy\] secagg"),
    "mezo": ({"strategy": {"name": "mezo"}}, r"'mezo' and \[privacy\] secagg"),
    "fedkseed pro": (
        {"strategy": {"name": "fedkseed", "pro": True}},
        r"pro = True of fedkseed and \[privacy\] secagg",
    ),
    "coordinates": ({"strategy": {"name": "ferret"}}, r"\[privacy\] range: how large its coordinates are"),
    "another optimiser": ({"local": {"optimizer": "adagrad"}}, r"\[privacy\] range: how far fedit with 'adagrad'"),
    "epochs": ({"local": {"epochs": 1.0}}, r"\[local\] epochs"),
    "unlike work": ({"clients": {"rank": 2, "plan": "halves"}}, r"plan = 'halves' and \[privacy\] secagg"),
    "an archive": ({"server": {"archive": True}}, r"\[server\] archive"),
    "a limit of norms": ({"limits": {"max_norm": 1.0}}, r"\[limits\] max_norm"),
    "robust sums": ({"robust": {"rule": "median"}}, "the server sees no single update"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_sum_is_refused_in_one_line(what: str) -> None:
    tables, said = REFUSED[what]
    whole: dict[str, Any] = {"strategy": {"name": "fedit"}, "clients": {"rank": 2}, "privacy": {"secagg": "on"}}
    with pytest.raises(ConfigError, match=said) as e:
        strategies.of(run_file.from_dict(whole | tables))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("clients", "privacy", "per_round", "said"),
    [
        (4, {}, None, "4 clients, .privacy. min_cohort is 5"),
        (9, {}, 6, r"per_round = 6, wanted 7 of 9 or more"),
        (40, {"value_bits": 11, "ring_bits": 16}, None, "room for 31 clients, not 40"),
        (300, {"value_bits": 8}, None, "at most 128"),
    ],
)
def test_too_few_clients_or_too_many_for_the_ring_are_refused(
    clients: int, privacy: dict[str, Any], per_round: int | None, said: str
) -> None:
    config = run_file.from_dict({"privacy": {"secagg": "on", **privacy}, "clients": {"per_round": per_round}})
    with pytest.raises(ConfigError, match=said):
        check_clients(config, clients)
    check_clients(run_file.from_dict({"privacy": {"secagg": "on"}, "clients": {"per_round": 7}}), 9)
