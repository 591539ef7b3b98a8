"""FLASC: exactly ceil(q P) entries each way, chosen by size, dense training between, and a server optimiser behind."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from terms import WithoutGradient

from fedft.adapters.lora import LoRA
from fedft.aggregation.server_optimizers import M, V
from fedft.arithmetic import tensors
from fedft.compression import error_feedback as feedback
from fedft.compression import sparse_vector
from fedft.contract import Layout, State
from fedft.errors import RejectedUpdate
from fedft.strategies.fedit import fedit
from fedft.strategies.flasc import OWNER, flasc
from fedft.testing import RUN, SEED, Ready, strategy_contract, toy
from fedft.training.first_order import FirstOrder
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, RANK = 9, 4, 3
LAYOUT = Layout(modules={"m": (OUT, IN), "n": (IN, OUT)}, head={"head.weight": (2, OUT)})
ENTRIES = 2 * RANK * (IN + OUT) + 2 * OUT  # P = 96
X = torch.linspace(-1, 1, 40).reshape(5, 8)
DATA = Ready({"x": X, "labels": X[:, :4]})
ORDER = ("head.weight", "m.lora_A", "m.lora_B", "n.lora_A", "n.lora_B")  # canonical


def drawn(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s.shape, generator=rng) for n, s in LoRA().spec(LAYOUT, RANK).items()}


def state(seed: int = 1, version: int = 0, **options) -> State:
    """Dense values everywhere, moments zero."""
    first = flasc(**options).first_state(LAYOUT, RANK, SEED).tensors
    return State(version, {**first, **{n: x for n, x in drawn(seed).items() if n in first}})


def plan(at: State, have: int | None = None, steps: int = 4, **options) -> Plan:
    bare = Plan(RUN, at.version, at.version, have, rank=RANK, steps=steps)
    return replace(bare, tensors=flasc(**options).downlink(at, have, bare))


def sent_by_hand(dense, count: int) -> dict[str, torch.Tensor]:
    """values and support of the `count` largest entries, worked out with numpy bit by bit."""
    x = dense.numpy()
    order = sorted(range(len(x)), key=lambda e: (-abs(x[e]), e))[:count]
    words = np.zeros(math.ceil(len(x) / 32), dtype=np.int64)
    for e in order:
        words[e // 32] |= 1 << (e % 32)
    values = x[sorted(order)]
    return {"values": torch.from_numpy(values), "support": torch.from_numpy(words.astype(np.uint32).view(np.int32))}


def bits(x: torch.Tensor) -> int:
    return sum(bin(int(w) & 0xFFFFFFFF).count("1") for w in x)


def flat(x) -> torch.Tensor:
    return torch.cat([x[n].reshape(-1) for n in sorted(x) if not n.startswith("adam.")])


QUICK = {"server_lr": 0.05}  # on the toy, |A| is up to 0.4: B outgrows it within a few rounds


@pytest.mark.parametrize(
    "options",
    [
        QUICK,
        {"score": "normalised", "error_feedback": True},
        {"freeze_a": True, "server_optimizer": "sgd", "server_lr": 1.0},
        {"density_up": 1.0, "density_down": 1.0, "variant": "reference"},
    ],
    ids=str,
)
def test_the_contract_holds(options):
    strategy_contract(flasc(**options))


def test_a_plain_magnitude_mask_starves_b_while_it_is_smaller_than_a():
    """The published defaults where A is large: for 8 rounds B stays below it, and clients are sent A, to no effect.

    The server's dense state learns all the while; a score that is fair to small tensors, or time, mends it.
    """
    t = toy(flasc())
    after = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    assert after.tensors["first.lora_B"].any()  # the server has it
    t.turn(t.plan(after, 0), 0)
    read = t.handle.read()
    assert not any(read[m + ".lora_B"].any() for m in t.layout.modules)
    assert any(read[m + ".lora_A"].any() for m in t.layout.modules)
    t = toy(flasc(score="normalised"))
    after = t.state()
    for _ in range(3):
        after = t.step(after, [t.update(after, k) for k in range(3)])
    t.turn(t.plan(after, 0), 0)
    assert any(t.handle.read()[m + ".lora_B"].any() for m in t.layout.modules)


@pytest.mark.parametrize("q", [0.25, 0.1, 1 / 16, 0.001, 0.999, 1.0])
def test_exactly_ceil_q_p_entries_travel_each_way(q):
    count = math.ceil(q * ENTRIES)
    down = plan(state(), density_down=q).tensors
    spec = flasc(density_up=q).spec(LAYOUT, plan(state()))
    assert down["values"].shape == spec["values"].shape == (count,)
    assert down["support"].shape == spec["support"].shape == (3,)  # 96 bits
    assert bits(down["support"]) == count
    assert down["support"].dtype == torch.int32


@pytest.mark.parametrize(("q", "count"), [(0.25, 24), (0.1, 9), (0.999, 95), (0.001, 1), (1.0, 96)])
def test_the_published_code_rounds_down(q, count):
    """floor(q P) of P = 96; of nothing at all one entry is left."""
    down = plan(state(), density_down=q, variant="reference").tensors
    spec = flasc(density_up=q, variant="reference").spec(LAYOUT, plan(state()))
    assert down["values"].shape == spec["values"].shape == (count,)
    assert bits(down["support"]) == count


@pytest.mark.parametrize("q", [0.25, 1 / 16, 1.0])
def test_bytes_are_four_per_value_and_one_per_eight_entries(q):
    """b ceil(q P) + P / 8, up and down; nothing but the declared header and table comes on top."""

    def body(data: bytes) -> int:
        return len(data) - 13 - int.from_bytes(data[7:9], "little") - int.from_bytes(data[9:13], "little")

    formula = 4 * math.ceil(q * ENTRIES) + ENTRIES // 8
    assert body(messages.encode_plan(plan(state(), density_down=q), "fp32")) == formula
    recipe = flasc(density_up=q)
    up = Update(sparse_vector.packed(flat(drawn(2)), sparse_vector.largest(flat(drawn(2)).abs(), q)), 1, run=RUN)
    data = messages.encode_update(up, "fp32")
    assert body(data) == formula == messages.body_bytes(recipe.spec(LAYOUT, plan(state())), "fp32")
    half = messages.encode_update(up, "bf16")
    assert body(half) == 2 * math.ceil(q * ENTRIES) + ENTRIES // 8


def test_the_download_is_the_largest_entries_of_the_whole_vector_not_of_each_tensor():
    at = state()
    sent = plan(at).tensors
    want = sent_by_hand(flat(at.tensors), 24)
    assert torch.equal(sent["values"], want["values"])
    assert torch.equal(sent["support"], want["support"])
    assert not plan(at, have=0).tensors
    lopsided = State(0, {**at.tensors, "m.lora_B": 1e6 * at.tensors["m.lora_B"]})
    got = tensors.shaped(
        sparse_vector.unpacked(plan(lopsided).tensors)[:ENTRIES], {n: at.tensors[n].shape for n in ORDER}
    )
    assert got["m.lora_B"].count_nonzero() == 24


def test_a_normalised_score_is_the_magnitude_over_the_tensor_s_rms():
    at = state()
    small = State(0, {**at.tensors, "m.lora_B": at.tensors["m.lora_B"] / 1000})
    for options, present in (({}, False), ({"score": "normalised"}, True)):
        x = tensors.shaped(
            sparse_vector.unpacked(plan(small, **options).tensors)[:ENTRIES], {n: at.tensors[n].shape for n in ORDER}
        )
        assert bool(x["m.lora_B"].any()) == present
    one = plan(small, score="normalised").tensors["support"]
    assert torch.equal(one, plan(at, score="normalised").tensors["support"])  # no scale of a tensor matters
    zero = State(0, {**at.tensors, "m.lora_B": torch.zeros(OUT, RANK)})
    assert torch.isfinite(plan(zero, score="normalised").tensors["values"]).all()


def test_a_client_starts_from_the_masked_state_and_what_is_masked_can_learn():
    """Zero where nothing came; a zero entry of B beside a live row of A has a gradient, and moves."""
    t = toy(flasc(density_up=1.0))
    at = t.state()
    turn = t.turn(t.plan(at, 0), 0)
    read = t.handle.read()
    x = flat(at.tensors)
    keep = sparse_vector.largest(x.abs(), 0.25)
    assert torch.equal(flat(read), x.masked_fill(~keep, 0))
    assert not read["first.lora_B"].any()
    trained = FirstOrder()(t.handle, DATA, turn).delta
    assert trained["first.lora_B"].any()
    assert (flat(trained) != 0).sum() > keep.sum()  # dense training


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_sent_and_the_client_s_residual_are_end_minus_start(kept):
    """To the bit; with feedback, the residual of the turn before is part of it."""
    t = toy(flasc(error_feedback=True, density_up=0.2))
    turn = t.turn(t.plan(t.state(), 0), 0)
    late = torch.linspace(-1, 1, 48) if kept else torch.zeros(48)
    start = flat(t.handle.read())
    shapes = {n: tuple(x.shape) for n, x in t.handle.read().items()}
    turn = replace(turn, kept={feedback.OWNER: tensors.shaped(late, shapes)} if kept else {})
    trained = t.recipe.local(t.handle, DATA, turn)
    delta, _, after = t.recipe.sent(trained, turn, t.handle)
    unsent = flat(after[feedback.OWNER])
    change = flat(t.handle.read()) - start + late
    assert torch.equal(sparse_vector.unpacked(delta)[:48].float() + unsent, change)
    want = sent_by_hand(change, math.ceil(0.2 * 48))
    assert torch.equal(delta["values"], want["values"])
    assert torch.equal(delta["support"], want["support"])
    assert not (sparse_vector.unpacked(delta)[:48].bool() & unsent.bool()).any()


def test_without_feedback_a_client_keeps_nothing_and_an_unfit_residual_is_forgotten():
    t = toy(flasc())
    turn = t.turn(t.plan(t.state(), 0), 0)
    assert not t.recipe.sent(t.recipe.local(t.handle, DATA, turn), turn, t.handle).kept
    fed = toy(flasc(error_feedback=True))
    deltas = []
    for kept in ({}, {feedback.OWNER: {"first.lora_B": torch.ones(7)}}):
        turn = replace(fed.turn(fed.plan(fed.state(), 0), 0), kept=kept)
        deltas.append(fed.recipe.sent(fed.recipe.local(fed.handle, DATA, turn), turn, fed.handle).delta)
    assert tensors.digest(deltas[0]) == tensors.digest(deltas[1])


def by_hand(count: int) -> tuple[list[Update], list[torch.Tensor]]:
    """Three clients' updates and the dense vectors they stand for."""
    dense = [flat(drawn(k)).clone() for k in (5, 6, 7)]
    updates = [Update(sent_by_hand(x, count), n) for x, n in zip(dense, (3, 1, 20), strict=True)]
    for x in dense:
        order = sorted(range(len(x)), key=lambda e: (-abs(float(x[e])), e))
        x[order[count:]] = 0
    return updates, dense


def test_the_aggregate_is_the_weighted_mean_of_the_sparse_changes():
    updates, dense = by_hand(24)
    mean = sum(n / 24 * x.double() for n, x in zip((3, 1, 20), dense, strict=True))
    got = flasc().aggregate(iter(updates))["mean"].double()
    assert torch.allclose(got, mean, atol=1e-6)
    plain = flasc(weights="uniform").aggregate(iter(updates))["mean"].double()
    assert torch.allclose(plain, sum(x.double() for x in dense) / 3, atol=1e-6)
    reference = flasc(variant="reference").aggregate(iter(updates))["mean"].double()
    assert torch.equal(plain, reference)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "server_lr": 0.1, "beta1": 0.5, "beta2": 0.9}], ids=str)
def test_the_server_s_steps_are_adamw_s_on_the_negated_mean(options):
    """Five rounds against torch.optim.AdamW on one dense vector."""
    recipe, at = flasc(**options), state(**options)
    x = torch.nn.Parameter(flat(at.tensors).double())
    beta = (options.get("beta1", 0.9), options.get("beta2", 0.999))
    lr, decay = options.get("server_lr", 1e-3), options.get("weight_decay", 0.0)
    adamw = torch.optim.AdamW([x], lr=lr, betas=beta, weight_decay=decay)
    for t in range(5):
        change = recipe.aggregate([Update(sent_by_hand(flat(drawn(10 + t + k)), 24), k + 1) for k in range(3)])
        x.grad = -change["mean"].double()
        adamw.step()
        at = recipe.next_state(at, change)
        assert torch.allclose(flat(at.tensors).double(), x.detach(), rtol=1e-5, atol=1e-6)


def test_one_adamw_step_by_hand():
    """From zero moments the first step is lr g / (|g| + eps): 1 + 0.001 with a mean change of 0.5, and nothing at 0."""
    at = State(0, {"m.lora_A": torch.ones(1, 2)}, {OWNER: {M: torch.zeros(2), V: torch.zeros(2)}})
    sent = {"values": torch.tensor([0.5]), "support": torch.tensor([1], dtype=torch.int32)}
    new = flasc().next_state(at, flasc().aggregate([Update(sent, 9)]))
    after, own = new.tensors, new.own[OWNER]
    assert torch.allclose(after["m.lora_A"], torch.tensor([[1.001, 1.0]]), atol=1e-7)
    assert after["m.lora_A"][0, 1].item() == 1.0
    assert torch.allclose(own[M], torch.tensor([-0.05, 0.0]))
    assert torch.allclose(own[V], torch.tensor([0.00025, 0.0]))


def test_at_density_one_with_plain_steps_it_is_federated_averaging():
    """Server SGD of rate 1: x + sum p_k (end - start), which on LoRA is FedIT."""
    a, b = toy(flasc(density_up=1.0, density_down=1.0, server_optimizer="sgd", server_lr=1.0)), toy(fedit())
    x, y = a.state(), b.state()
    for _ in range(3):
        x, y = (t.step(s, [t.update(s, k) for k in range(3)]) for t, s in ((a, x), (b, y)))
        assert tensors.norm(tensors.sub(x.tensors, y.tensors)) <= 1e-6 * tensors.norm(y.tensors)


def test_entries_in_no_mask_stay_as_initialised_unless_the_server_decays_weights():
    updates, dense = by_hand(24)
    never = ~sum(x.bool() for x in dense).bool()
    assert never.any()
    for options, moves in (({}, False), ({"weight_decay": 0.01}, True), ({"variant": "reference"}, True)):
        recipe, at = flasc(**options), state(**options)
        after = recipe.next_state(at, recipe.aggregate(iter(updates))).tensors
        assert torch.equal(flat(after)[never], flat(at.tensors)[never]) != moves
        if moves:  # the published code's optimiser at its library's default: x (1 - lr 0.01)
            assert torch.allclose(flat(after)[never], flat(at.tensors)[never] * (1 - 1e-5), rtol=1e-7)


def test_moments_never_travel_and_the_server_s_vector_stays_dense():
    after = flasc().next_state(state(), flasc().aggregate(by_hand(24)[0]))
    assert after.own[OWNER].keys() == {M, V}
    assert plan(after).tensors.keys() == {"values", "support"}
    assert after.tensors.keys() == set(ORDER)
    assert flat(after.tensors).count_nonzero() == ENTRIES
    plain = flasc(server_optimizer="sgd")
    assert not any(plain.next_state(state(), plain.aggregate(by_hand(24)[0])).own.values())


def test_who_only_wants_the_model_receives_all_of_it():
    """A plan of no steps: what is exported is x, not its mask."""
    at = state()
    whole = plan(at, steps=0).tensors
    assert torch.equal(sparse_vector.unpacked(whole)[:ENTRIES].float(), flat(at.tensors))


def test_a_frozen_a_neither_travels_nor_moves():
    t = toy(flasc(freeze_a=True, density_down=1.0, density_up=1.0))
    at = t.state()
    assert not any(n.endswith("lora_A") for n in at.tensors)
    a = LoRA().initial(t.layout, 2, SEED)
    for k in range(3):
        update = t.update(at, k, lr=0.5)
        assert len(update.delta["values"]) == 2 * (6 + 4)
        model = dict(t.handle.model.named_parameters())
        for m in t.layout.modules:
            assert torch.equal(model[f"{m}.lora_A.r2.weight"], a[m + ".lora_A"])


def refused(delta) -> str:
    with pytest.raises(RejectedUpdate) as e:
        flasc().admit(delta, plan(state()))
    return e.value.code


def test_a_support_that_does_not_fit_its_values_is_refused():
    good = by_hand(24)[0][0].delta
    flasc().admit(good, plan(state()))
    assert refused({**good, "support": torch.zeros(3, dtype=torch.int32)}) == "spec_mismatch"
    assert refused({**good, "support": torch.full((3,), -1, dtype=torch.int32)}) == "spec_mismatch"
    more = good["support"].clone()
    more[0] |= ~more[0] & -(~more[0])  # one position more
    assert refused({**good, "support": more}) == "spec_mismatch"


def test_bits_behind_the_last_entry_place_nothing():
    """P = 5: a bit at position 6 is within the word and no entry's; the server's vector has no place for it."""
    at = State(0, {"m.lora_A": torch.ones(1, 5)}, {OWNER: {M: torch.zeros(5), V: torch.zeros(5)}})
    sent = {"values": torch.tensor([0.5, 7.0]), "support": torch.tensor([0b1000001], dtype=torch.int32)}
    only = {"values": torch.tensor([0.5]), "support": torch.tensor([1], dtype=torch.int32)}
    got, want = (flasc().next_state(at, flasc().aggregate([Update(x, 1)])) for x in (sent, only))
    assert got.digest == want.digest


@pytest.mark.parametrize("precision", messages.CODECS)
def test_positions_come_through_every_codec_untouched(precision):
    update = replace(by_hand(24)[0][0], run=RUN)
    spec = flasc().spec(LAYOUT, plan(state()))
    got = messages.decode_update(messages.encode_update(update, precision), spec, precision).delta
    assert torch.equal(got["support"], update.delta["support"])
    flasc().admit(got, plan(state()))


def test_a_diverged_change_is_sent_and_refused_like_any_other():
    t = toy(flasc())
    x = flat(drawn(1)).clone()
    x[:30] = math.nan
    sent = Update(sparse_vector.packed(x, sparse_vector.largest(x.abs(), 0.25)), 1, run=RUN)
    with pytest.raises(RejectedUpdate, match="NaN"):
        messages.decode_update(messages.encode_update(sent, "fp32"), t.recipe.spec(LAYOUT, plan(state())), "fp32")


def test_another_method_may_change_the_gradients():
    recipe = flasc()
    t = toy(replace(recipe, local=recipe.local.with_term(WithoutGradient())))
    assert not t.update(t.state(), 0).delta["values"].any()


def test_what_it_declares():
    recipe = flasc()
    assert (recipe.linear, recipe.ring_summable, recipe.unlike_ranks, recipe.reveals_clients) == (False,) * 4
    assert not recipe.keeps
    assert flasc(error_feedback=True).keeps


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"density_up": 0.0}, "above 0 and at most 1"),
        ({"density_down": 1.5}, "above 0 and at most 1"),
        ({"density_up": math.nan}, "above 0 and at most 1"),
        ({"server_lr": 0.0}, "server_lr > 0"),
        ({"beta2": 1.0}, "beta2"),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"score": "rank"}, "score"),
        ({"server_optimizer": "adam"}, "adamw"),
        ({"weights": "equal"}, "weights"),
        ({"variant": "published"}, "variant"),
    ],
    ids=str,
)
def test_bad_options_are_refused_with_a_reason(options, said):
    with pytest.raises(ValueError, match=said):
        flasc(**options)


def test_a_mean_over_nobody_is_refused():
    with pytest.raises(ValueError, match="none"):
        flasc().aggregate(iter([]))
