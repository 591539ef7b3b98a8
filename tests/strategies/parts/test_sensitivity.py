"""Scores of adapted weights: the numbers worked out by hand, and what must hold of them whatever the model."""

import pytest
import torch

from fedft.adapters.lora import LoRA
from fedft.adapters.triplet import Triplet
from fedft.config import Local
from fedft.contract import Learning, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.models.handle import ModelHandle
from fedft.recipe import FirstOrder
from fedft.strategies.parts import sensitivity
from fedft.strategies.parts.sensitivity import SCORE, Orthogonal, Scores, Sensitivity
from fedft.suites.adapters import LAYOUT
from fedft.testing import Ready, ToyModel
from fedft.update import Plan, Shape

BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}

ALONE = (Scores(),)


def turn(steps=20):
    return Turn(Plan("", 0, 0, steps=steps, learning_rate=0.01), {}, "", Local(learning_rate=0.01), 7, 8)


def scores(kind, *, times=1.0, terms=ALONE, steps=20, lam=0.0):
    """What a turn on the toy model, whose loss is multiplied by `times`, sends; triplets begin at `lam`."""
    handle = ModelHandle(ToyModel(), LAYOUT, kind)
    handle.write(kind.initial(handle.layout, Shape(2), 11))
    handle.write({n: torch.full_like(x, lam) for n, x in handle.read().items() if n.endswith(".lam")})
    plain = handle.loss
    handle.loss = lambda batch: plain(batch) * times
    local = FirstOrder("value", terms=terms)
    sent = local(handle, Ready(BATCH), turn(steps)).delta
    return {n.removeprefix(SCORE): x for n, x in sent.items() if n.startswith(SCORE)}


def test_three_steps_by_hand():
    """(theta, grad) = (1, .5), (1, -1), (2, .25): I = .5, 1, .5."""
    one = Sensitivity()
    wanted = [(0.075, 0.06375, 0.00478125), (0.21375, 0.172125, 0.03679172), (0.2566875, 0.182803125, 0.04692328)]
    for (theta, grad), (mean, spread, score) in zip([(1, 0.5), (1, -1), (2, 0.25)], wanted, strict=True):
        one.see(torch.tensor([float(theta)]), torch.tensor([float(grad)]))
        assert float(one.mean) == pytest.approx(mean, abs=1e-7)
        assert float(one.spread) == pytest.approx(spread, abs=1e-7)
        assert float(one.score) == pytest.approx(score, abs=1e-8)


def test_a_triplet_has_a_score_per_component_and_a_pair_one():
    """s(lam_j) + mean_a s(P_aj) + mean_c s(Q_jc); mean s(A) + mean s(B)."""
    s = {
        "m.lam": torch.tensor([1.0, 2.0]), "m.P": torch.tensor([[1.0, 0.0], [3.0, 0.0]]),
        "m.Q": torch.tensor([[3.0], [5.0]]), "n.lora_A": torch.tensor([[1.0, 3.0]]), "n.lora_B": torch.tensor([[7.0]]),
        "alone.lora_A": torch.ones(1, 1), "head.weight": torch.ones(1),
    }  # fmt: skip
    found = sensitivity.of_modules(s)
    assert {m: x.tolist() for m, x in found.items()} == {"m": [1 + 2 + 3, 2 + 0 + 5], "n": [2 + 7]}


@pytest.mark.parametrize("kind", [Triplet(), LoRA()], ids=lambda kind: kind.name)
def test_scores_are_positive_and_keep_their_ranking_where_all_losses_are_scaled(kind):
    """Adam's steps do not depend on the scale of a loss, but for its epsilon and the clip; nor does what is sent."""
    once, thrice = scores(kind), scores(kind, times=3.0)
    assert once.keys() == {"first", "second"} == thrice.keys()
    assert all(bool((x > 0).all()) for x in once.values())
    totals = [{m: float(x.sum()) for m, x in of.items()} for of in (once, thrice)]
    assert len({tuple(sorted(t, key=t.get)) for t in totals}) == 1
    assert totals[1] == pytest.approx(totals[0], rel=0.05)
    assert sum(totals[0].values()) == pytest.approx(sum(len(x) for x in once.values()))


@pytest.mark.parametrize("kind", [Triplet(), LoRA()], ids=lambda kind: kind.name)
def test_without_gradients_a_score_is_zero(kind):
    found = scores(kind, times=0.0)
    assert found.keys() == {"first", "second"}
    assert not any(bool(x.any()) for x in found.values())


def test_the_first_steps_are_not_counted():
    """Five of ten or more, else half of them."""
    p = torch.nn.Parameter(torch.ones(1))
    for steps, counted in ((20, 15), (10, 5), (4, 2), (1, 1)):
        course = Scores().begin(Learning({"m.lora_A": p, "m.lora_B": p}, {}, lambda n: 1.0), turn(steps))
        p.grad = torch.ones(1)
        for _ in range(steps):
            course.step()
        known = Sensitivity()
        for _ in range(counted):
            known.see(p, p.grad)
        assert course.scores()["m"].item() == pytest.approx(2 * known.score.item())
        assert course.finish(Trained({}, {}), None).delta[SCORE + "m"].item() == pytest.approx(1)


def test_a_term_behind_the_scores_does_not_change_what_they_see():
    alone, behind = (scores(Triplet(), terms=terms, steps=1, lam=0.5) for terms in (ALONE, (*ALONE, Orthogonal(5.0))))
    assert all(torch.equal(alone[m], behind[m]) for m in alone)
    assert all(bool((x > 0).all()) for x in alone.values())


def test_the_penalty_is_the_gradient_that_autograd_finds():
    torch.manual_seed(0)
    p, q = (torch.nn.Parameter(torch.randn(*size)) for size in ((5, 2), (2, 7)))
    (0.1 * ((p.T @ p - torch.eye(2)).square().sum() + (q @ q.T - torch.eye(2)).square().sum())).backward()
    wanted = p.grad.clone(), q.grad.clone()
    p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)
    learning = Learning({"m.P": p, "m.Q": q, "m.lam": torch.nn.Parameter(torch.ones(2))}, {}, lambda n: 1.0)
    Orthogonal(0.1).begin(learning, turn()).step()
    assert torch.allclose(p.grad, wanted[0], atol=1e-5)
    assert torch.allclose(q.grad, wanted[1], atol=1e-5)


def test_scores_are_sent_with_a_mean_of_1_and_taken_no_other_way():
    found = sensitivity.to_mean_1({"a": torch.tensor([1e-12, 3e-12]), "b": torch.tensor([5e-12])})
    assert torch.cat([found["a"], found["b"]]).tolist() == pytest.approx([1 / 3, 1, 5 / 3])
    sensitivity.check_mean({SCORE + m: x for m, x in found.items()} | {"w": torch.tensor([-1e9])})
    for wrong in ([0.5, -0.1], [1.0, 1e9]):
        with pytest.raises(RejectedUpdate, match="wanted from 0 on"):
            sensitivity.check_mean({SCORE + "a": torch.tensor(wrong)})


def test_news_move_importance_among_those_they_are_of_and_nowhere_else():
    """Of b and c: sum 6 before, news 1 and 2 scaled by 2."""
    known = {"a": 5.0, "b": 4.0, "c": 2.0}
    found = sensitivity.renewed(known, {"b": 1.0, "c": 2.0}, 0.7)
    assert found == pytest.approx({"a": 5.0, "b": 0.7 * 4 + 0.3 * 2, "c": 0.7 * 2 + 0.3 * 4})
    assert sensitivity.renewed(known, {"b": 1e-9, "c": 2e-9}, 0.7) == pytest.approx(found)
    assert sensitivity.renewed(known, {"b": 0.0}, 0.7) == known
    assert sensitivity.renewed(known, {}, 0.7) == known
