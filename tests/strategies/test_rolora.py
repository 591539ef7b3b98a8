"""RoLoRA: one factor a round, the other frozen on every client, and an aggregate that is exact."""

from dataclasses import replace

import pytest
import torch

from fedft.arithmetic import named_pairs, tensors
from fedft.contract import Layout, State
from fedft.strategies.rolora import learns, rolora
from fedft.testing import RUN, SEED, Ready, toy
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, RANK = 9, 4, 3
LAYOUT = Layout(modules={"m": (OUT, IN), "n": (IN, OUT)}, head={"head.weight": (2, OUT)})
MODULES = tuple(LAYOUT.modules)
A_SIZE = B_SIZE = RANK * (IN + OUT)  # of both modules together
HEAD_SIZE = 2 * OUT


def plan(round: int, have: int | None = None) -> Plan:
    return Plan(RUN, round, round, have, rank=RANK)


def update(round: int, seed: int, examples: int) -> Update:
    """Deltas of the factor that learns in this round."""
    rng = torch.Generator().manual_seed(seed)
    spec = rolora().spec(LAYOUT, plan(round))
    return Update({n: torch.randn(s.shape, generator=rng) for n, s in spec.items()}, examples, round, RUN)


def states(rounds: int) -> list[State]:
    """A run: the states of versions 0 to `rounds`."""
    recipe = rolora()
    found = [recipe.first_state(LAYOUT, RANK, SEED)]
    for t in range(rounds):
        change = recipe.aggregate([update(t, 10 * t + k, k + 1) for k in range(3)])
        found.append(State(t + 1, recipe.server(found[-1], change)))
    return found


def factors(x, suffix: str) -> dict[str, torch.Tensor]:
    return {m: x[m + suffix] for m in MODULES}


def body(sent, name: str = "fp32") -> int:
    """Bytes of the tensors in an encoded update: its length without frame, header and table."""
    data = messages.encode_update(sent, name)
    return len(data) - 13 - int.from_bytes(data[7:9], "little") - int.from_bytes(data[9:13], "little")


def test_the_first_round_trains_b_and_the_next_one_a():
    assert [learns(t) for t in range(4)] == [".lora_B", ".lora_A", ".lora_B", ".lora_A"]
    head = {"head.weight"}
    assert rolora().spec(LAYOUT, plan(0)).keys() == {m + ".lora_B" for m in MODULES} | head
    assert rolora().spec(LAYOUT, plan(1)).keys() == {m + ".lora_A" for m in MODULES} | head


@pytest.mark.parametrize("round", [2, 3])
def test_the_aggregate_of_products_is_the_product_of_the_aggregate(round):
    state = states(round)[-1]
    updates = [update(round, k, n) for k, n in enumerate((3, 1, 20))]
    after = rolora().server(state, rolora().aggregate(iter(updates)))
    for m in MODULES:
        trained = [{**state.tensors, **tensors.add({n: state.tensors[n] for n in u.delta}, u.delta)} for u in updates]
        exact = sum(
            u.num_examples / 24 * x[m + ".lora_B"].double() @ x[m + ".lora_A"].double()
            for u, x in zip(updates, trained, strict=True)
        )
        got = after[m + ".lora_B"].double() @ after[m + ".lora_A"].double()
        assert (got - exact).norm() <= 1e-6 * exact.norm()


def test_two_rounds_by_hand():
    """B: 0 + (3 * 2 + 1 * -2) / 4 = 1, then A: 1 + (1 * 4 + 1 * 0) / 2 = 3, so the change of the weight is 3."""
    one = torch.ones(1, 1)
    state = State(0, {"m.lora_A": one, "m.lora_B": 0 * one})
    recipe = rolora()
    change = recipe.aggregate([Update({"m.lora_B": 2 * one}, 3), Update({"m.lora_B": -2 * one}, 1)])
    state = State(1, recipe.server(state, change))
    assert (state.tensors["m.lora_A"].item(), state.tensors["m.lora_B"].item()) == (1.0, 1.0)
    change = recipe.aggregate([Update({"m.lora_A": 4 * one}, 1), Update({"m.lora_A": 0 * one}, 1)])
    state = State(2, recipe.server(state, change))
    assert (state.tensors["m.lora_A"].item(), state.tensors["m.lora_B"].item()) == (3.0, 1.0)


def test_the_frozen_factor_is_bitwise_equal_on_all_clients_through_training():
    """On the live model, after the local steps of every client; and nobody's gradient is left switched off."""
    t = toy(rolora())
    state = t.state()
    for number in range(4):
        still, updates = learns(number + 1), []
        for k in range(3):
            updates.append(t.update(state, k, lr=0.5))
            read = t.handle.read()
            assert all(torch.equal(read[m + still], state.tensors[m + still]) for m in t.layout.modules)
            assert all(
                not torch.equal(read[m + learns(number)], state.tensors[m + learns(number)]) for m in ("second",)
            )
            assert all(p.requires_grad for p in t.handle.parameters().values())
            assert not any(n.endswith(still) for n in updates[-1].delta)
        state = t.step(state, updates)


def test_two_consecutive_rounds_change_both_factors():
    t = toy(rolora())
    first = t.state()
    second = t.step(first, [t.update(first, k) for k in range(3)])
    third = t.step(second, [t.update(second, k) for k in range(3)])
    for m in t.layout.modules:
        assert torch.equal(second.tensors[m + ".lora_A"], first.tensors[m + ".lora_A"])
        assert not torch.equal(second.tensors[m + ".lora_B"], first.tensors[m + ".lora_B"])
        assert not torch.equal(third.tensors[m + ".lora_A"], second.tensors[m + ".lora_A"])
        assert torch.equal(third.tensors[m + ".lora_B"], second.tensors[m + ".lora_B"])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_starting_with_a_at_b_zero_leaves_the_model_unchanged(optimizer):
    """The gradient of A is B^T G = 0: a round of the wrong parity at version 0 does nothing at all."""
    t = toy(rolora())
    wrong = replace(t.plan(t.state(), 0, lr=0.5), round=1)
    turn = t.turn(wrong, 0)
    turn = replace(turn, local=replace(turn.local, optimizer=optimizer))
    delta, _, _ = t.recipe.local(t.handle, Ready(_batch()), turn)
    assert delta.keys() == {m + ".lora_A" for m in t.layout.modules}
    assert not any(x.any() for x in delta.values())


def _batch() -> dict[str, torch.Tensor]:
    return {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


def test_an_update_is_one_factor_and_the_head_to_the_byte():
    for number, size in ((0, B_SIZE), (1, A_SIZE), (2, B_SIZE)):
        assert body(update(number, 1, 1)) == 4 * (size + HEAD_SIZE)


def test_a_download_is_what_the_client_lacks():
    """A round behind: that factor and the head; further behind, or new: everything; up to date: nothing."""
    recipe, run = rolora(), states(4)
    for version in (1, 2, 3, 4):
        sent = recipe.downlink(run[version], version - 1, plan(version, version - 1))
        assert sent.keys() == recipe.spec(LAYOUT, plan(version - 1)).keys()
        assert recipe.downlink(run[version], None, plan(version)).keys() == run[version].tensors.keys()
        assert not recipe.downlink(run[version], version, plan(version, version))
    assert recipe.downlink(run[4], 2, plan(4, 2)).keys() == run[4].tensors.keys()
    assert recipe.downlink(run[2], 3, plan(2, 3)).keys() == run[2].tensors.keys()


@pytest.mark.parametrize("precision", messages.CODECS)
@pytest.mark.parametrize("took_part", [(1, 2, 3, 4, 5), (2, 4, 5), (1, 5), (3, 4, 5)])
def test_whoever_missed_which_round_holds_the_same_bits(took_part, precision):
    """Also where downloads are rounded: a factor is rounded alike in whichever round it is sent."""
    recipe, run = rolora(), states(5)

    def sent(version: int, have: int | None) -> Plan:
        bare = plan(version, have)
        whole = replace(bare, tensors=recipe.downlink(run[version], have, bare))
        return messages.decode_plan(messages.encode_plan(whole, precision), max_bytes=2**20)

    held = None
    for version in took_part:
        held = State(version, recipe.receive(held, sent(version, held.version if held else None)))
    assert tensors.digest(held.tensors) == tensors.digest(recipe.receive(None, sent(5, None)))


def test_a_client_ahead_of_a_restored_server_is_brought_back():
    recipe, run = rolora(), states(3)
    ahead = State(3, run[3].tensors)
    back = plan(2, 3)
    back = replace(back, tensors=recipe.downlink(run[2], 3, back))
    assert tensors.digest(recipe.receive(ahead, back)) == run[2].digest


def test_the_head_is_trained_and_averaged_in_every_round():
    for number in (0, 1):
        updates = [update(number, k, k + 1) for k in range(2)]
        want = sum(u.num_examples / 3 * u.delta["head.weight"].double() for u in updates)
        got = rolora().aggregate(updates)["head.weight"]
        assert (got - want).norm() <= 1e-6 * want.norm()


def test_one_rank_for_all_and_everything_adds_up():
    recipe = rolora()
    assert (recipe.linear, recipe.ring_summable, recipe.unlike_ranks, recipe.reveals_clients) == (
        True,
        True,
        False,
        False,
    )
    assert all(d.rank == RANK for d in named_pairs.split(recipe.first_state(LAYOUT, RANK, SEED).tensors)[0].values())


def test_a_mean_over_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        rolora().aggregate(iter([]))
