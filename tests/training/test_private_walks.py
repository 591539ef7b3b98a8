"""Zeroth-order steps with noise: slopes of rows, what one record can move, and every rule behind the noise."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from small_models import factors, small
from unlike_rows import rows

from fedft import registry, strategies
from fedft.adapters.lora import LoRA
from fedft.config import Local, RunConfig, Strategy
from fedft.contract import Private, Turn
from fedft.data import batches
from fedft.data.batches import ClientRows
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import MicroBatch
from fedft.errors import ConfigError, PlanRefused
from fedft.models.handle import ModelHandle
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.tables import Privacy
from fedft.randomness import families
from fedft.recipe import Recipe
from fedft.testing import toy
from fedft.training import private_walks, row_slopes, zeroth_order
from fedft.training.first_order import FirstOrder
from fedft.training.private_walks import PrivateWalk
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan

LOCAL = Local(batch_size=8)
WIDE = 1.0  # a distance of probes at which the rounding of losses does not show: trajectories can be compared
Z = families.make("hadamard", 7, 1)
ESTIMATES = ("two_sided", "one_sided", "forward")


def stream(n: int = 0) -> Stream:
    return Stream(bytes(range(32)), hashlib.sha256(b"%d" % n).digest())


def handle_of(dtype=torch.float32) -> ModelHandle:
    s = small("llama", dtype)
    handle = ModelHandle(s.model, s.layout, LoRA())
    handle.write(factors(s.layout, 2))
    for parameter in handle.parameters().values():
        parameter.data = parameter.data.to(dtype)
    return handle


def row(k: int, length: int = 9) -> Example:
    ids = [1 + (3 * k + t) % 12 for t in range(length)]
    return Example(ids, [IGNORED] * 3 + ids[3:], 3)


ALIKE = [row(k) for k in range(8)]


def walked(how: Walk, of=ALIKE, steps=3, lr=0.01, *, noise=None, handle=None, micro_batch=None, family="hadamard"):
    """(the walk in numbers, trained numbers before, after); without `noise` by the landed steps."""
    handle = handle or handle_of()
    private = None if noise is None else Private(**{"clip": 1e9, "noise_multiplier": 0.0, "stream": stream(),
                                                     "in_steps": True, **noise})  # fmt: skip
    turn = Turn(Plan("", 0, 0, steps=steps, learning_rate=lr), {}, "", LOCAL, 7, 5, private=private)
    data = ClientRows(of, 8, lambda some: batches.collate(some, 0), micro_batch=micro_batch)
    z = families.make(family, 7, steps * how.samples)
    before = values(handle)
    return zeroth_order.walk(handle, data, turn, how, z, range(z.count)), before, values(handle)


def values(handle: ModelHandle) -> torch.Tensor:
    return torch.cat([p.detach().double().flatten() for p in handle.parameters().values()])


@pytest.mark.parametrize("estimate", ESTIMATES)
@pytest.mark.parametrize("rule", ["sgd", "momentum", "adam", "sign"])
def test_without_noise_and_clip_it_is_the_walk_that_there_was(rule: str, estimate: str) -> None:
    """privacy.md 3.2: every row is in every batch, and all learn equally many tokens."""
    how = Walk(rule=rule, estimate=estimate, epsilon=WIDE)
    ours, _, after = walked(how, noise={})
    plain, before, there = walked(how)
    assert float((after - there).norm() / there.norm()) < 1e-6
    assert float((there - before).norm() / there.norm()) > 1e-3
    assert torch.equal(ours.count, plain.count)
    assert ours.metrics == {"steps": 3.0}
    assert "loss" in plain.metrics


@pytest.mark.parametrize("how", [Walk(samples=3), Walk(blocks=True), Walk(blocks=True, samples=2), Walk(sparsity=0.5)])
def test_several_slopes_of_a_row_without_noise_are_the_walk_that_there_was(how: Walk) -> None:
    how = Walk(samples=how.samples, blocks=how.blocks, sparsity=how.sparsity, epsilon=WIDE)
    _, _, after = walked(how, noise={})
    _, before, there = walked(how)
    assert float((after - there).norm() / there.norm()) < 1e-6
    assert float((there - before).norm() / there.norm()) > 1e-3


def made_up(above: list[float], below: list[float]):
    """A model whose rows have these losses at w + eps z and w - eps z."""
    seen: list[float] = []

    class Perturbed:
        def __init__(self, epsilon: float) -> None:
            self.epsilon = epsilon

        def __enter__(self) -> None:
            seen.append(self.epsilon)

        def __exit__(self, *_) -> None:
            pass

    return SimpleNamespace(
        perturbed=lambda z, j, epsilon, only: Perturbed(epsilon),
        losses=lambda batch: torch.tensor(above if seen[-1] > 0 else below, dtype=torch.float64),
    )


@pytest.mark.parametrize(("zeta", "there", "wanted"), [(0.0, True, 1.25), (1.0, True, 2.25), (1.0, False, 1.0)])
def test_known_answer(monkeypatch: pytest.MonkeyPatch, zeta: float, there: bool, wanted: float) -> None:
    """privacy.md 4: slopes 5, -15, 150, clipped to 5, -10, 10, of an expected size of 4; xi = 0.4."""
    xi = torch.tensor([0.4], dtype=torch.float64)
    monkeypatch.setattr(Stream, "gaussians", lambda self, purpose, name, count: xi.clone())
    handle = made_up([3.00, 2.90, 3.50], [2.99, 2.93, 3.20])
    private = Private(10.0, zeta, stream())
    batch = {"x": torch.zeros(3)} if there else None
    found = row_slopes.estimate(handle, batch, Walk(epsilon=1e-3), Z, [0], [None], private, 0, 4)
    assert found.tolist() == [[pytest.approx(wanted, rel=1e-9)]]
    slopes = row_slopes.slopes(handle, {"x": torch.zeros(3)}, Walk(epsilon=1e-3), Z, [0], [None])
    assert slopes.flatten().tolist() == pytest.approx([5, -15, 150])


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_slopes_of_rows_are_those_of_each_alone(estimate: str) -> None:
    handle, z = handle_of(torch.float64), families.make("hadamard", 7, 4)
    of = [r for r in rows() if any(x != IGNORED for x in r.labels)]
    how = Walk(estimate=estimate, epsilon=1e-4, samples=4)
    found = row_slopes.slopes(handle, batches.collate(of, 0), how, z, range(4), [None])
    alone = [row_slopes.slopes(handle, batches.collate([r], 0), how, z, range(4), [None]) for r in of]
    assert found.shape == (len(of), 4)
    assert torch.allclose(found, torch.cat(alone), rtol=1e-7, atol=1e-7)
    derived = [[handle.directional_derivative(batches.collate([r], 0), z, j)[0] for j in range(4)] for r in of]
    exact = torch.tensor(derived, dtype=torch.float64)
    assert float((found - exact).abs().max()) < (3e-2 if estimate == "one_sided" else 1e-3)
    assert float(exact.abs().max()) > 1


@pytest.mark.parametrize("how", [Walk(), Walk(samples=3), Walk(blocks=True), Walk(estimate="forward", samples=2)])
def test_one_record_moves_the_sum_by_at_most_the_clip(how: Walk) -> None:
    """As one vector over all directions and layers of a step; with and without the last row, in six draws."""
    handle, furthest, clip = handle_of(), 0.0, 0.3
    z = families.make("hadamard", 7, how.samples)
    parts = [None] if not how.blocks else [[n] for n in handle.parameters()][:3]
    for draw in range(6):
        of = rows(6, seed=draw)
        private = Private(clip, 1.0, stream(draw))
        with_, without = (
            row_slopes.estimate(handle, batches.collate(some, 0), how, z, range(z.count), parts, private, 0, 4)
            for some in (of, of[:5])
        )
        moved = 4 * float((with_ - without).norm())
        assert moved <= clip * (1 + 1e-3)  # losses are of float32
        furthest = max(furthest, moved)
    assert furthest > 0.9 * clip


def test_a_row_that_is_not_finite_counts_as_0() -> None:
    bad = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, float("inf")], [0.0, 0.0]], dtype=torch.float64)
    assert row_slopes.clipped_sum(bad, 100.0).tolist() == [1, 2]
    assert row_slopes.clipped_sum(bad[1:3], 100.0).tolist() == [0, 0]


def test_no_step_is_left_out() -> None:
    """Also with empty batches: noise alone, a number for every direction."""
    found, before, after = walked(Walk(), steps=4, noise={"noise_multiplier": 1.0, "clip": 0.5, "probability": 1e-9})
    xi = torch.cat([stream().gaussians("step", str(s), 1) for s in range(4)])
    assert torch.allclose(found.slopes, xi * 0.5 / 8)
    assert found.count.tolist() == [1] * 4
    assert found.metrics == {"steps": 4.0}
    assert not torch.equal(before, after)


def test_pieces_give_the_same_step() -> None:
    noise = {"noise_multiplier": 1.0, "clip": 0.3, "probability": 0.8}
    whole, pieces = (walked(Walk(epsilon=WIDE), rows(), noise=noise, micro_batch=m)[0] for m in (None, MicroBatch(3)))
    assert torch.allclose(whole.slopes, pieces.slopes, atol=1e-5)


def test_the_same_turn_is_the_same_numbers_and_another_has_others() -> None:
    noise = {"noise_multiplier": 1.0, "clip": 0.3, "probability": 0.5}
    one, two, other = (walked(Walk(), rows(), noise={**noise, "stream": stream(n)})[0].moved for n in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_noise_of_another_mode_leaves_the_walk_as_it_is() -> None:
    """Noise on the result ("local-dp") is not in its steps."""
    plain, beside = walked(Walk())[0], walked(Walk(), noise={"in_steps": False, "noise_multiplier": 5.0})[0]
    assert torch.equal(plain.moved, beside.moved)


def test_accuracy_is_of_each_row() -> None:
    handle, how = handle_of(), Walk(objective="accuracy")
    of = rows(4, seed=8)
    found = row_slopes._measured(handle, batches.collate(of, 0), how)
    for n, r in enumerate(of):
        guess, wanted = handle.predictions(batches.collate([r], 0))
        learned = wanted != IGNORED
        share = float((guess != wanted)[learned].double().mean()) if learned.any() else 0.0
        assert float(found[n]) == pytest.approx(share)


MODE = Privacy(mode="zo-dp", clip=1.0, noise_multiplier=1.0, delta=1e-5)
WALKS = {"fedkseed", "mezo", "zo_fedavg"}


def recipe_of(name: str, **options):
    return strategies.of(RunConfig(strategy=Strategy(name, options), privacy=MODE))


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_zeroth_order_strategy_hides_records_and_no_other(name: str) -> None:
    if name in WALKS:
        assert isinstance(recipe_of(name).local, PrivateWalk)
        return
    with pytest.raises(ConfigError, match="zo-dp") as e:
        recipe_of(name)
    assert "\n" not in str(e.value)


def test_what_a_method_wraps_counts() -> None:
    assert isinstance(recipe_of("fedopt", on="zo_fedavg").local, PrivateWalk)
    assert isinstance(recipe_of("fedkseed", pro=True).local, PrivateWalk)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (None, "which mine does not take"),
        (Walk(rule="conservative"), "looks at the losses"),
        (Walk(objective="f1"), "of all records together"),
        (Walk(first_order_from=1), "without noise"),
        (Walk(blocks=True, coordinate=True), "before the next is probed"),
    ],
)
def test_what_looks_at_records_in_another_way_is_refused_whoever_wrote_it(how: Walk | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        private_walks.private(Recipe("mine", LoRA(), walk=how), RunConfig(privacy=MODE))


def test_a_run_that_moves_layer_after_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="coordinate and"):
        recipe_of("zo_fedavg", blocks=True, coordinate=True)


def test_rows_that_see_each_other_are_found_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    s = small("llama")
    handle = ModelHandle(s.model, s.layout, LoRA())
    layer = handle.model.model.layers[0].mlp
    ran = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: ran(x) + 0.1 * x.mean(0, keepdim=True))
    turn = Turn(Plan("", 0, 0, steps=1, learning_rate=0.1), {}, "", LOCAL, 7, 5, private=Private(1.0, 1.0, stream()))
    data = ClientRows(rows(), 8, lambda some: batches.collate(some, 0))
    with pytest.raises(PlanRefused, match="record's loss") as e:
        recipe_of("zo_fedavg").local(handle, data, turn)
    assert e.value.code == "dp_selftest"


@pytest.mark.parametrize("name", sorted(WALKS))
def test_an_upload_with_noise_is_of_the_same_form(name: str) -> None:
    """zo-dp leaves messages as they are: same names, shapes and dtypes, and bytes as many."""
    plain = strategies.of(RunConfig(strategy=Strategy(name)))
    there = toy(plain)
    state = there.state()
    plan = there.plan(state, 0)
    private = Private(0.5, 1.0, stream(), 0.7)

    x = {"x": torch.randn(12, 8), "labels": torch.randn(12, 4)}
    of = [{n: t[i] for n, t in x.items()} for i in range(12)]
    data = ClientRows(of, 8, lambda some: {n: torch.stack([r[n] for r in some]) for n in some[0]})

    def sent(local, **more):
        turn = there.turn(plan, 0)
        turn = Turn(turn.plan, turn.held, turn.held_digest, turn.local, turn.run_seed, turn.seed, turn.kept, **more)
        return local(there.handle, data, turn)

    one, two = sent(plain.local), sent(recipe_of(name).local, private=private)
    assert two.metrics == {"steps": float(plan.steps)}
    assert {n: (t.shape, t.dtype) for n, t in one.delta.items()} == {
        n: (t.shape, t.dtype) for n, t in two.delta.items()
    }


def test_steps_that_are_no_walk_are_not_passed_off_as_hidden() -> None:
    handle = handle_of()
    turn = Turn(Plan("", 0, 0, steps=1, learning_rate=0.1), {}, "", LOCAL, 7, 5, private=Private(1.0, 1.0, stream()))
    data = ClientRows(ALIKE, 8, lambda some: batches.collate(some, 0))
    with pytest.raises(RuntimeError, match="without noise"):
        PrivateWalk(FirstOrder())(handle, data, turn)
