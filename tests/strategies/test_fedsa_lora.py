"""FedSA-LoRA: A is shared; B and the head never leave their client and wait there; each client has its own model."""

from dataclasses import replace

import pytest
import torch
from terms import WithoutGradient

from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Layout, State, Turn
from fedft.models.handle import ModelHandle
from fedft.strategies.fedit import fedit
from fedft.strategies.fedsa_lora import OWNER, fedsa_lora
from fedft.testing import RUN, SEED, Ready, ToyModel, strategy_contract, toy
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, RANK = 9, 4, 3
LAYOUT = Layout(modules={"m": (OUT, IN), "n": (IN, OUT)}, head={"head.weight": (2, OUT)})
A, B = {"m.lora_A", "n.lora_A"}, {"m.lora_B", "n.lora_B"}
BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


def deltas(recipe, seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    spec = recipe.spec(LAYOUT, Plan(RUN, 0, 0, rank=RANK))
    return {n: torch.randn(s.shape, generator=rng) for n, s in spec.items()}


class WithHead:
    """A live model with one adapted layer and a head (the toy's second layer), and turns by hand."""

    def __init__(self, recipe) -> None:
        self.layout = Layout(modules={"first": (6, 8)}, head={"second.weight": (4, 6)})
        self.recipe, self.handle = recipe, ModelHandle(ToyModel(), self.layout, recipe.space)

    def turn(self, state: State, kept=None, rank: int = 2, lr: float = 0.3) -> Turn:
        plan = Plan(RUN, state.version, state.version, rank=rank, steps=3, learning_rate=lr)
        plan = replace(plan, tensors=self.recipe.downlink(state, None, plan))
        held = self.recipe.receive(None, plan)
        turn = Turn(plan, held, tensors.digest(held), Local(), SEED, SEED, {OWNER: kept} if kept else {})
        self.recipe.start(self.handle, turn)
        return turn

    def train(self, turn: Turn):
        return self.recipe.local(self.handle, Ready(BATCH), turn)

    def first(self, rank: int = 2) -> State:
        return self.recipe.first_state(self.layout, rank, SEED)


@pytest.mark.parametrize("options", [{"realign": True}, {"global_b": "mean"}], ids=str)
def test_the_contract_holds(options):
    strategy_contract(fedsa_lora(**options))


def test_b_and_the_head_are_in_no_payload():
    """Neither declared nor sent nor held by the server, whatever is trained."""
    recipe = fedsa_lora()
    state = recipe.first_state(LAYOUT, RANK, SEED)
    assert state.tensors.keys() == A
    assert recipe.downlink(state, None, Plan(RUN, 0, 0)).keys() == A
    assert recipe.spec(LAYOUT, Plan(RUN, 0, 0, rank=RANK)).keys() == A
    model = WithHead(recipe)
    trained = model.train(model.turn(model.first()))
    assert trained.delta.keys() == {"first.lora_A"}
    assert trained.kept.keys() == {OWNER}
    kept = trained.kept[OWNER]
    assert kept.keys() == {"first.lora_B", "second.weight"}
    assert all(x.any() for x in kept.values())
    sent = messages.encode_update(Update(trained.delta, 1, run=RUN), "fp32")
    assert not any(x.numpy().tobytes() in sent for x in kept.values())
    assert b"lora_B" not in sent
    assert b"second" not in sent


def test_a_travels_and_nothing_else_to_the_byte():
    sent = Update(deltas(fedsa_lora(), 1), 1, run=RUN)
    data = messages.encode_update(sent, "fp32")
    declared = 13 + int.from_bytes(data[7:9], "little") + int.from_bytes(data[9:13], "little")
    assert len(data) - declared == 4 * RANK * (IN + OUT)


def test_a_becomes_the_mean_by_hand():
    """1 + (3 * 2 + 1 * -2) / 4 = 2."""
    recipe = fedsa_lora()
    change = recipe.aggregate([Update({"m.lora_A": torch.full((1, 1), x)}, n) for x, n in ((2.0, 3), (-2.0, 1))])
    assert recipe.server(State(0, {"m.lora_A": torch.ones(1, 1)}), change)["m.lora_A"].item() == 2.0


def test_a_client_that_takes_part_first_starts_from_b_zero_and_the_shared_a():
    model = WithHead(fedsa_lora())
    state = State(5, {"first.lora_A": torch.randn(2, 8, generator=torch.Generator().manual_seed(1))})
    model.train(model.turn(state))  # another client was here
    model.turn(state)
    read = model.handle.read()
    assert torch.equal(read["first.lora_A"], state.tensors["first.lora_A"])
    assert not read["first.lora_B"].any()
    assert not read["second.weight"].any()


def test_a_client_that_comes_back_finds_its_own_b_and_head_bit_for_bit_and_today_s_a():
    model = WithHead(fedsa_lora())
    mine = model.train(model.turn(model.first())).kept[OWNER]
    others = model.train(model.turn(model.first(), mine)).kept[OWNER]
    assert not torch.equal(others["first.lora_B"], mine["first.lora_B"])
    later = State(9, {"first.lora_A": torch.full((2, 8), 0.25)})
    model.turn(later, mine)
    read = model.handle.read()
    assert torch.equal(read["first.lora_B"], mine["first.lora_B"])
    assert torch.equal(read["second.weight"], mine["second.weight"])
    assert torch.equal(read["first.lora_A"], later.tensors["first.lora_A"])


def test_the_effective_model_is_own_b_times_shared_a():
    t = toy(fedsa_lora())
    state = t.state()
    for _ in range(2):
        state = t.step(state, [t.update(state, k, lr=0.3) for k in range(3)])
    outputs = []
    for k in range(3):
        outputs.append(t.outputs(state, k).clone())
        change, own = t.handle.change()[0], t.kept[k, 1][OWNER]
        for m in t.layout.modules:
            want = own[m + ".lora_B"] @ state.tensors[m + ".lora_A"]
            assert torch.allclose(change[m].dense(), want, atol=1e-6)
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])


def test_everyone_holds_the_same_a_whatever_they_keep():
    t = toy(fedsa_lora())
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    for k in range(3):
        t.turn(t.plan(state, k), k)
        read = t.handle.read()
        assert all(torch.equal(read[m + ".lora_A"], state.tensors[m + ".lora_A"]) for m in t.layout.modules)


def test_what_was_kept_at_another_rank_is_not_used():
    model = WithHead(fedsa_lora())
    kept = model.train(model.turn(model.first())).kept[OWNER]
    model.turn(model.first(rank=3), kept, rank=3)
    read = model.handle.read()
    assert read["first.lora_B"].shape == (6, 3)
    assert not any(read[n].any() for n in ("first.lora_B", "second.weight"))


def test_realign_keeps_the_product_where_a_was_only_turned():
    """A_new = Q A_old with Q invertible: B_k A_old A_new^+ = B_k Q^-1, so B A is what it was."""
    model = WithHead(fedsa_lora(realign=True))
    kept = model.train(model.turn(model.first())).kept[OWNER]
    q = torch.tensor([[2.0, 1.0], [-1.0, 0.5]])
    model.turn(State(4, {"first.lora_A": q @ kept["first.lora_A"]}), kept)
    read = model.handle.read()
    was = kept["first.lora_B"] @ kept["first.lora_A"]
    assert torch.allclose(read["first.lora_B"] @ read["first.lora_A"], was, atol=1e-5)
    assert torch.allclose(read["first.lora_B"], kept["first.lora_B"] @ torch.linalg.inv(q), atol=1e-5)
    assert torch.equal(read["second.weight"], kept["second.weight"])


def test_realign_is_the_least_squares_fit_and_does_nothing_while_a_stands():
    model = WithHead(fedsa_lora(realign=True))
    kept = model.train(model.turn(model.first())).kept[OWNER]
    model.turn(State(4, {"first.lora_A": kept["first.lora_A"]}), kept)
    assert torch.equal(model.handle.read()["first.lora_B"], kept["first.lora_B"])
    new = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    model.turn(State(4, {"first.lora_A": new}), kept)
    missed = model.handle.read()["first.lora_B"] @ new - kept["first.lora_B"] @ kept["first.lora_A"]
    assert (missed @ new.T).abs().max() < 1e-5  # orthogonal to the rows it can use
    assert missed.norm() > 0.01


def test_with_b_shared_it_is_fedit():
    recipe, plain = fedsa_lora(share_b=True), fedit()
    assert recipe.spec(LAYOUT, Plan(RUN, 0, 0, rank=RANK)) == plain.spec(LAYOUT, Plan(RUN, 0, 0, rank=RANK))
    assert not recipe.personal
    assert not recipe.keeps
    a, b = toy(recipe), toy(plain)
    x, y = a.state(), b.state()
    for _ in range(3):
        x, y = (t.step(s, [t.update(s, k) for k in range(3)]) for t, s in ((a, x), (b, y)))
    assert x.digest == y.digest


def test_global_b_is_the_mean_of_values_and_only_newcomers_start_from_it():
    recipe = fedsa_lora(global_b="mean")
    updates = [Update(deltas(recipe, k), n) for k, n in enumerate((3, 1, 20))]
    assert updates[0].delta.keys() == A | B | {"head.weight"}
    state = recipe.first_state(LAYOUT, RANK, SEED)
    after = recipe.server(state, recipe.aggregate(iter(updates)))
    for n in B | {"head.weight"}:
        mean = sum(u.num_examples / 24 * u.delta[n].double() for u in updates)
        assert torch.allclose(after[n].double(), mean, atol=1e-6)
    model = WithHead(recipe)
    mine = model.train(model.turn(model.first()))
    assert torch.equal(mine.delta["first.lora_B"], mine.kept[OWNER]["first.lora_B"])
    state = State(1, recipe.server(model.first(), recipe.aggregate([Update(mine.delta, 1), Update(mine.delta, 1)])))
    model.turn(state)
    assert torch.equal(model.handle.read()["first.lora_B"], mine.kept[OWNER]["first.lora_B"])
    own = {n: 2 * x for n, x in mine.kept[OWNER].items()}
    model.turn(state, own)
    assert torch.equal(model.handle.read()["first.lora_B"], own["first.lora_B"])


def test_another_method_may_change_the_gradients():
    """Here to nothing: neither A nor what is kept moves."""
    recipe = fedsa_lora()
    recipe = replace(recipe, local=recipe.local.with_term(WithoutGradient()))
    model = WithHead(recipe)
    trained = model.train(model.turn(model.first()))
    assert not any(x.any() for x in (*trained.delta.values(), *trained.kept[OWNER].values()))


def test_what_it_declares():
    recipe = fedsa_lora()
    assert recipe.personal
    assert recipe.keeps
    assert recipe.linear
    assert recipe.ring_summable
    assert not recipe.reveals_clients
    assert not recipe.unlike_ranks


def test_bad_options_and_nobody_are_refused():
    with pytest.raises(ValueError, match="global_b"):
        fedsa_lora(global_b="median")
    with pytest.raises(ValueError, match="nothing private"):
        fedsa_lora(share_b=True, realign=True)
    with pytest.raises(ValueError, match="none"):
        fedsa_lora().aggregate(iter([]))
