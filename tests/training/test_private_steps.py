"""Private steps by back-propagation: what one record can move, who is in a batch, and where noise comes in."""

import hashlib
from dataclasses import replace

import pytest
import torch
from small_models import factors, small
from unlike_rows import rows

from fedft import registry, strategies
from fedft.adapters.lora import LoRA
from fedft.config import Local, RunConfig, Strategy
from fedft.contract import Course, Private, Turn
from fedft.data import batches, poisson_batches
from fedft.data.batches import ClientRows
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import MicroBatch
from fedft.errors import ConfigError, PlanRefused
from fedft.models.handle import ModelHandle
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.tables import Privacy
from fedft.recipe import Full, Recipe
from fedft.training import per_example, private_steps
from fedft.training.first_order import FirstOrder
from fedft.training.objectives import Likelihood, OfLogits
from fedft.training.private_steps import PrivateFirstOrder
from fedft.update import Plan

SGD = Local(optimizer="sgd", batch_size=8, max_grad_norm=None)
MODE = Privacy(mode="example-dp", clip=1.0, noise_multiplier=1.0, delta=1e-5)


def stream(n: int = 0) -> Stream:
    return Stream(bytes(range(32)), hashlib.sha256(b"%d" % n).digest())


def handle_of(objective=None) -> ModelHandle:
    s = small("llama")
    handle = ModelHandle(s.model, s.layout, LoRA(), objective=objective)
    handle.write(factors(s.layout, 2))
    return handle


def values(handle: ModelHandle) -> torch.Tensor:
    """All trained numbers in the adapter's own scale, float64."""
    return torch.cat([p.detach().double().flatten() for p in handle.parameters().values()])


def trained(of, *, handle=None, steps=1, lr=1.0, local=SGD, terms=(), micro_batch=None, private=None, **noise):
    """(what the turn gave, numbers before, numbers after)."""
    handle = handle or handle_of()
    wanted = private or Private(**{"clip": 1e9, "noise_multiplier": 0.0, "stream": stream(), **noise})
    turn = Turn(Plan("", 0, 0, steps=steps, learning_rate=lr), {}, "", local, 7, 5, private=wanted)
    data = ClientRows(of, local.batch_size, lambda some: batches.collate(some, 0), micro_batch=micro_batch)
    before = values(handle)
    found = PrivateFirstOrder(FirstOrder(terms=terms))(handle, data, turn)
    return found, before, values(handle)


def xi(handle: ModelHandle, step: int, of: Stream) -> torch.Tensor:
    return torch.cat([of.gaussians("step", f"{step}/{n}", p.numel()) for n, p in handle.parameters().items()])


def row(k: int, length: int = 9, given: int = 3) -> Example:
    ids = [1 + (3 * k + t) % 12 for t in range(length)]
    return Example(ids, [IGNORED] * given + ids[given:], given)


def alike(n: int = 8) -> list[Example]:
    """Rows that learn equally many tokens."""
    return [row(k) for k in range(n)]


def test_without_noise_and_clip_it_is_plain_gradient_descent() -> None:
    """privacy.md 3.2: z 0, C 1e9, five steps; every row is in every batch, and rows count alike."""
    _, before, ours = trained(alike(), steps=5, lr=0.05)
    handle = handle_of()
    turn = Turn(Plan("", 0, 0, steps=5, learning_rate=0.05), {}, "", SGD, 7, 5)
    FirstOrder()(handle, ClientRows(alike(), 8, lambda some: batches.collate(some, 0)), turn)
    assert float((ours - values(handle)).norm() / (values(handle) - before).norm()) < 1e-5


@pytest.mark.parametrize(("clip", "draws"), [(0.02, 10), (0.5, 50)])
def test_one_record_moves_the_sum_by_at_most_the_clip(clip: float, draws: int) -> None:
    """With and without one of eight rows of unlike length, which learns much or little."""
    handle, furthest = handle_of(), 0.0
    start = handle.read()
    for draw in range(draws):
        of = rows(8, seed=draw)
        of[7] = Example([5] * (draw % 12 + 2), [IGNORED] + [5] * (draw % 12 + 1), 1)
        ends = []
        for some in (of, of[:7]):
            handle.write(start)
            ends.append(trained(some, handle=handle, clip=clip, probability=0.7, stream=stream(draw))[2])
        moved = 8 * float((ends[0] - ends[1]).norm())
        assert moved <= clip * (1 + 1e-4) + 1e-5  # weights are rounded to float32
        furthest = max(furthest, moved)
    assert furthest > 0.9 * clip, "the row was in no batch, or never clipped"


def test_the_noise_is_that_of_the_turns_stream_over_the_expected_size() -> None:
    handle = handle_of()
    _, _, plain = trained(rows(), handle=handle, clip=0.4)
    again = handle_of()
    _, _, noisy = trained(rows(), handle=again, clip=0.4, noise_multiplier=1.5)
    wanted = -xi(again, 0, stream()) * 1.5 * 0.4 / 8
    assert torch.allclose(noisy - plain, wanted, atol=1e-6)


def test_an_empty_batch_is_a_step_of_noise() -> None:
    found, before, after = trained(rows(), steps=2, clip=0.4, noise_multiplier=2.0, probability=1e-9)
    wanted = before - (xi(handle_of(), 0, stream()) + xi(handle_of(), 1, stream())) * 2.0 * 0.4 / 8
    assert torch.allclose(after, wanted, atol=1e-5)
    assert found.metrics == {"steps": 2.0}


def test_the_divisor_is_the_expected_size_whoever_is_in_the_batch() -> None:
    of = alike(8)
    there = poisson_batches.drawn(of, Private(1.0, 0.0, stream(), 0.4), 0)
    assert 0 < len(there) < 8
    _, before, some = trained(of, probability=0.4)
    _, _, alone = trained(there)
    assert torch.allclose(some - before, alone - before, atol=1e-6)


def test_no_step_is_left_out_for_a_row_that_is_not_finite() -> None:
    """It counts as 0, and the step is that of the others."""

    class Broken(Likelihood):
        def losses(self, handle, batch):
            return super().losses(handle, batch) * torch.where(batch["input_ids"][:, 0] == 13, float("inf"), 1.0)

    handle = handle_of(objective=Broken())
    found, _, after = trained([*alike(6), Example([13, 4, 5], [IGNORED, 4, 5], 1), row(7)], handle=handle, clip=0.3)
    _, before, without = trained([*alike(6), row(7)], clip=0.3)
    assert torch.allclose(after, without, atol=1e-6)
    assert not torch.equal(before, after)
    assert found.metrics == {"steps": 1.0}


def test_the_same_turn_is_the_same_bytes_and_another_has_other_batches() -> None:
    noise = {"noise_multiplier": 1.0, "clip": 0.3, "probability": 0.5, "steps": 3}
    one, two, other = (trained(rows(), stream=stream(n), **noise)[2] for n in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    private = [Private(1.0, 1.0, stream(n), 0.5) for n in (0, 0, 1)]
    first, again, third = ([len(poisson_batches.drawn(range(100), p, s)) for s in range(5)] for p in private)
    assert first == again
    assert first != third


def test_rows_are_in_a_batch_with_the_probability_that_is_said() -> None:
    found = [i for s in range(400) for i in poisson_batches.drawn(range(50), Private(1.0, 1.0, stream(), 0.2), s)]
    assert len(found) == pytest.approx(4000, abs=5 * (20000 * 0.2 * 0.8) ** 0.5)
    assert min(found.count(i) for i in range(50)) > 40


@pytest.mark.parametrize("size", [1, 3])
def test_pieces_give_the_same_step_with_noise_once(size: int) -> None:
    noise = {"noise_multiplier": 1.0, "clip": 0.3, "probability": 0.8, "steps": 3, "lr": 0.1}
    whole = trained(rows(), **noise)[2]
    pieces = trained(rows(), micro_batch=MicroBatch(size), **noise)[2]
    assert torch.allclose(whole, pieces, atol=1e-6)


def test_the_clip_of_the_mean_is_not_looked_at() -> None:
    clipped = replace(SGD, max_grad_norm=1e-6)
    assert torch.equal(trained(rows(), clip=0.3)[2], trained(rows(), clip=0.3, local=clipped)[2])


def test_terms_see_what_is_hidden_already() -> None:
    class Reading:
        def begin(self, learning, turn):
            return _Reading(learning)

    class _Reading(Course):
        def __init__(self, learning):
            self.live = learning.live

        def step(self):
            seen.append(torch.cat([p.grad.double().flatten() for p in self.live.values()]))
            for p in self.live.values():
                p.grad.zero_()

    seen: list[torch.Tensor] = []
    _, before, after = trained(rows(), terms=(Reading(),), clip=0.3, noise_multiplier=1.0, probability=1e-9)
    assert torch.allclose(seen[0], xi(handle_of(), 0, stream()) * 0.3 / 8, atol=1e-7)
    assert torch.equal(before, after), "what a term makes of the gradient is what the optimiser takes"


def test_a_turn_without_noise_trains_nothing() -> None:
    handle = handle_of()
    before = values(handle)
    turn = Turn(Plan("", 0, 0, steps=1, learning_rate=1.0), {}, "", SGD, 7, 5)
    with pytest.raises(RuntimeError, match="without noise"):
        PrivateFirstOrder(FirstOrder())(handle, ClientRows(rows(), 8, lambda some: batches.collate(some, 0)), turn)
    assert torch.equal(before, values(handle))


def recipe_of(name: str, **tables):
    return strategies.of(RunConfig(strategy=Strategy(name), privacy=MODE, **tables))


REFUSED = {"fedkseed", "mezo", "zo_fedavg", "fedspine", "fedpipe", "fedavg", "ferret"}


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_strategy_with_gradient_steps_on_adapters_hides_records(name: str) -> None:
    if name not in REFUSED:
        assert isinstance(recipe_of(name).local, PrivateFirstOrder)
        return
    with pytest.raises(ConfigError, match="example-dp") as e:
        recipe_of(name)
    assert "\n" not in str(e.value)


def test_a_recipe_that_cannot_is_refused_whoever_wrote_it() -> None:
    config = RunConfig(privacy=MODE)
    with pytest.raises(ConfigError, match="mine looks at them in other ways"):
        private_steps.private(Recipe("mine", LoRA(), local=lambda handle, data, turn: None), config)
    with pytest.raises(ConfigError, match="mine trains all parameters"):
        private_steps.private(Recipe("mine", Full()), config)


@pytest.mark.parametrize("key", ["checkpointing", "compile"])
def test_what_would_lose_single_gradients_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[local\] {key} and \[privacy\] mode"):
        recipe_of("ffa_lora", local=Local(**{key: True}))


def test_nothing_is_trained_where_the_self_test_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is asked for once on each model, not in every turn."""
    asked = []
    monkeypatch.setattr(per_example, "self_test", lambda handle, rows, data: asked.append(handle.model))
    handle, steps = handle_of(), PrivateFirstOrder(FirstOrder())
    turn = Turn(Plan("", 0, 0, steps=1, learning_rate=0.1), {}, "", SGD, 7, 5, private=Private(1.0, 1.0, stream()))
    data = ClientRows(rows(), 8, lambda some: batches.collate(some, 0))
    for _ in range(3):
        steps(handle, data, turn)
    assert asked == [handle.model]

    def refused(handle, rows, data):
        raise PlanRefused("dp_selftest", "no")

    monkeypatch.setattr(per_example, "self_test", refused)
    before = values(handle)
    with pytest.raises(PlanRefused):
        PrivateFirstOrder(FirstOrder())(handle, data, turn)
    assert torch.equal(before, values(handle))


def test_what_is_dropped_is_drawn_in_secret() -> None:
    """Not from the turn's seed, which the server knows; and the caller's generator goes on as if nothing was drawn."""

    def ended(seed: int, n: int) -> torch.Tensor:
        s = small("llama")
        handle = ModelHandle(s.model, s.layout, LoRA(), dropout=0.5)
        handle.write(factors(s.layout, 2))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found = trained(alike(), handle=handle, stream=stream(n))[2]
            assert torch.equal(before, torch.get_rng_state())
        return found

    one, same, other = ended(1, 0), ended(2, 0), ended(1, 1)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other), "every row is in every batch and there is no noise: dropout alone differs"


def test_the_self_test_draws_nothing() -> None:
    """A turn that is resumed, where it is asked for anew, ends with the same bytes."""
    handle, data = handle_of(), ClientRows(rows(), 8, lambda some: batches.collate(some, 0))
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        per_example.self_test(handle, data.rows, data)
        assert torch.equal(before, torch.get_rng_state())


def test_an_objective_without_losses_of_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(OfLogits, "losses")
    with pytest.raises(ConfigError, match="Likelihood does not say the loss of every record"):
        recipe_of("ffa_lora")
