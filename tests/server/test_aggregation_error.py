"""The aggregation audit: what it says equals what dense float64 algebra says, and exact methods get zero."""

from dataclasses import replace

import pytest
import torch

from fedft import strategies, testing
from fedft.adapters.lora import LoRA
from fedft.aggregation.beginnings import Beginnings
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import Local
from fedft.contract import State
from fedft.server import aggregation_error
from fedft.server.aggregation_error import AggregationAudit

EXACT = 1e-6


def _begun(t: testing.Toy, state: State) -> Beginnings:
    """Where the toy's clients begin at a state."""
    return Beginnings(t.recipe, t.layout, state, t.plan(state, 0), Local(), testing.SEED)


def audited(name: str, rounds: int = 2, **options) -> tuple[testing.Toy, list]:
    """(toy, [(state, updates, state after, error)]) of some rounds."""
    t = testing.toy(strategies.make(name, options))
    found, state = [], t.state()
    for _ in range(rounds):
        updates = [t.update(state, k) for k in range(len(t.ranks))]
        audit = AggregationAudit(_begun(t, state))
        assert audit.possible(t.plan(state, k) for k in range(len(t.ranks)))
        for k, u in enumerate(updates):
            audit.see(u, t.plan(state, k))
        after = t.step(state, updates)
        found.append((state, updates, after, audit.error(after, max(t.ranks))))
        state = after
    return t, found


def test_the_error_of_fedit_is_the_covariance_of_its_factors():
    """|sum p_k (B_k - B)(A_k - A)| / |sum p_k B_k A_k|, worked out densely in float64."""
    t, found = audited("fedit", rounds=3)
    for state, updates, after, error in found:
        wrong, right, total = 0.0, 0.0, sum(u.num_examples for u in updates)
        for m in t.layout.modules:
            a, b = m + A_SUFFIX, m + B_SUFFIX
            ends = [(state.tensors[a] + u.delta[a], state.tensors[b] + u.delta[b], u.num_examples) for u in updates]
            mean_a, mean_b = after.tensors[a].double(), after.tensors[b].double()
            spread = sum(n / total * (b_ - mean_b) @ (a_ - mean_a) for a_, b_, n in ends)
            wrong += float(spread.norm() ** 2)
            right += float(sum(n / total * b_.double() @ a_.double() for a_, b_, n in ends).norm() ** 2)
        assert error == pytest.approx((wrong / right) ** 0.5, rel=1e-4)
        assert error > 1e-3  # averaging factors is not exact


@pytest.mark.parametrize("name", ["flora", "ffa_lora"])
def test_an_exact_method_has_no_error(name):
    """FLoRA's stacks for unlike ranks, also once they are recompressed; FFA-LoRA's common A."""
    assert all(error < EXACT for *_, error in audited(name, rounds=5)[1])


def test_zero_padding_is_measured_at_every_clients_own_rank():
    t, found = audited("fedit", rounds=1, padding="zero")
    _, updates, after, error = found[0]
    total = sum(u.num_examples for u in updates)
    right, wrong = 0.0, 0.0
    for m in t.layout.modules:
        exact = sum(
            u.num_examples / total * u.delta[m + B_SUFFIX].double() @ u.delta[m + A_SUFFIX].double() for u in updates
        )
        applied = after.tensors[m + B_SUFFIX].double() @ after.tensors[m + A_SUFFIX].double()
        wrong, right = wrong + float((applied - exact).norm() ** 2), right + float(exact.norm() ** 2)
    assert error == pytest.approx((wrong / right) ** 0.5, rel=1e-4)


def test_an_update_at_learning_rate_zero_has_nothing_to_miss():
    t = testing.toy(strategies.make("fedit", {}))
    state = t.state()
    audit = AggregationAudit(_begun(t, state))
    updates = [t.update(state, k, lr=0.0) for k in range(3)]
    for k, u in enumerate(updates):
        audit.see(u, t.plan(state, k))
    assert audit.error(t.step(state, updates), 2) is None


@pytest.mark.parametrize(("name", "options"), [("fedkseed", {"K": 16}), ("fedkseed", {"K": 16, "space": "lora"})])
def test_what_sends_no_factors_is_not_audited(name, options):
    t = testing.toy(strategies.make(name, options))
    assert not AggregationAudit(_begun(t, t.state())).possible([])


def test_a_client_that_keeps_half_of_its_pairs_is_not_audited():
    t = testing.toy(replace(strategies.make("fedit", {}), personal=True))
    assert isinstance(t.recipe.space, LoRA)
    assert not AggregationAudit(_begun(t, t.state())).possible([])


def test_a_client_that_trains_some_modules_only_leaves_no_mean_over_all():
    t = testing.toy(strategies.make("fedit", {}))
    audit, whole = AggregationAudit(_begun(t, t.state())), t.plan(t.state(), 0)
    assert audit.possible([whole, whole])
    assert not audit.possible([whole, replace(whole, chosen=("first",))])
    assert not audit.possible([whole, replace(whole, ranks={"first": 0})])


def test_what_follows_an_appended_sum_is_found_without_cancellation():
    from fedft.arithmetic.lowrank import LowRank
    from fedft.server.aggregation_error import _minus

    old = LowRank(1e6 * torch.ones(2, 5), torch.ones(4, 2))
    tiny = LowRank(1e-6 * torch.ones(1, 5), torch.ones(4, 1))
    assert _minus(old + tiny, old, (4, 5)).norm() == pytest.approx(tiny.norm())
    assert _minus(old, None, (4, 5)).norm() == pytest.approx(old.norm())
    assert _minus(None, old, (4, 5)).norm() == pytest.approx(old.norm())


def test_a_sample_is_measured_where_all_modules_would_cost_much(monkeypatch):
    """The figure is then of these modules alone, and no factor of another is held."""
    t, found = audited("fedit", rounds=1)
    state, updates, after, whole = found[0]
    assert aggregation_error.sampled(t.layout, max(t.ranks), len(updates)) == [*t.layout.modules]
    monkeypatch.setattr(aggregation_error, "HELD", 1)
    (only,) = aggregation_error.sampled(t.layout, max(t.ranks), len(updates))
    audit = AggregationAudit(_begun(t, state), [only])
    for k, u in enumerate(updates):
        audit.see(u, t.plan(state, k))
    error = audit.error(after, max(t.ranks))
    a, b, total = only + A_SUFFIX, only + B_SUFFIX, sum(u.num_examples for u in updates)
    ends = [(state.tensors[a] + u.delta[a], state.tensors[b] + u.delta[b], u.num_examples) for u in updates]
    mean = sum(n / total * y.double() @ x.double() for x, y, n in ends)
    wrong = after.tensors[b].double() @ after.tensors[a].double() - mean
    assert error == pytest.approx(float(wrong.norm() / mean.norm()), rel=1e-3)
    assert error != pytest.approx(whole, rel=1e-3)
