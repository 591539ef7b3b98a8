"""FedEx-LoRA: factors are averaged, and what their product misses is in the base: the model is the exact mean."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from fedft.adapters.lora import LoRA
from fedft.arithmetic import lowrank, named_pairs, tensors, weight_changes
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.stacks import mean_residual, stack
from fedft.benchmarks.measure import Peak
from fedft.config import Local
from fedft.contract import Layout, State, Turn
from fedft.models.handle import ModelHandle
from fedft.strategies.fedex_lora import MEAN, fedex_lora
from fedft.strategies.fedit import fedit
from fedft.strategies.flora import flora
from fedft.strategies.parts import moving_base
from fedft.testing import RUN, SEED, strategy_contract, toy
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, RANK = 17, 15, 2
LAYOUT = Layout(modules={"m": (OUT, IN), "n": (IN, OUT)}, head={"head": (3,)})
MODULES = tuple(LAYOUT.modules)
PER_RANK = sum(o + i for o, i in LAYOUT.modules.values())  # P(1)


def client(seed: int, examples: int, rank: int = RANK) -> Update:
    """Trained factors and a head."""
    rng = torch.Generator().manual_seed(seed)
    spec = LoRA().spec(LAYOUT, rank)
    return Update({n: torch.randn(s.shape, generator=rng) for n, s in spec.items()}, examples)


COHORT = [client(1, 3), client(2, 1), client(3, 16)]


def first_state() -> State:
    return fedex_lora().first_state(LAYOUT, RANK, SEED)


def after(updates, state: State | None = None, **options) -> State:
    recipe, state = fedex_lora(**options), state or first_state()
    return State(state.version + 1, recipe.server(state, recipe.aggregate(iter(updates))))


def product(x, m: str, ending: str = "") -> torch.Tensor:
    changes = weight_changes.split({n.removesuffix(ending): t for n, t in x.items() if n.endswith(ending)})[0]
    return dense(changes[m])


def dense(change) -> torch.Tensor:
    return weight_changes.factored(change).double().dense()


def effective(state: State, m: str) -> torch.Tensor:
    """What the model differs from w0 by: the residuals in the base and the adapter."""
    return product(state.tensors, m) + product(state.tensors, m, MEAN)


def mean_product(updates, m: str) -> torch.Tensor:
    total = sum(u.num_examples for u in updates)
    return sum(u.num_examples / total * product(u.delta, m) for u in updates)


def covariance(updates, m: str) -> torch.Tensor:
    """sum_k p_k (B_k - B)(A_k - A), float64."""
    p = [u.num_examples / sum(v.num_examples for v in updates) for u in updates]
    a, b = ([u.delta[m + s].double() for u in updates] for s in (".lora_A", ".lora_B"))
    mean_a, mean_b = (sum(q * x for q, x in zip(p, xs, strict=True)) for xs in (a, b))
    return sum(q * (y - mean_b) @ (x - mean_a) for q, x, y in zip(p, a, b, strict=True))


def close(x, y, tolerance=1e-6) -> bool:
    return bool((x - y).norm() <= tolerance * y.norm())


def pairs_of(updates, m: str) -> list[tuple[LowRank, float]]:
    return [(named_pairs.split(u.delta)[0][m], u.num_examples) for u in updates]


def plan(state: State, have: int | None) -> Plan:
    bare = Plan(RUN, state.version, state.version, have, rank=RANK)
    return replace(bare, tensors=fedex_lora().downlink(state, have, bare))


def size(p: Plan) -> int:
    return sum(x.numel() for x in p.tensors.values())


def test_the_contract_holds_for_a_cut_residual():
    strategy_contract(fedex_lora(residual_rank=1, weights="uniform"))


def test_one_number_by_hand():
    """B, A = (1, 2) and (3, 6), weighted alike: means 2 and 4, R = (2 + 18) / 2 - 8 = 2; the mean product is 10."""
    updates = [
        Update({"m.lora_A": torch.tensor([[a]]), "m.lora_B": torch.tensor([[b]])}, 5)
        for b, a in ((1.0, 2.0), (3.0, 6.0))
    ]
    change = fedex_lora().aggregate(updates)
    assert (change["m.lora_B.mean"].item(), change["m.lora_A.mean"].item()) == (2.0, 4.0)
    assert (change["m.lora_B"] @ change["m.lora_A"]).item() == 2.0


@pytest.mark.parametrize("updates", [COHORT, COHORT[1:], COHORT[:1], [client(k, k + 1) for k in range(6)]], ids=len)
def test_the_effective_weight_after_aggregation_is_the_mean_of_the_products(updates):
    state = after(updates)
    for m in MODULES:
        assert close(effective(state, m), mean_product(updates, m))


def test_the_adapter_restarts_from_fedit_s_mean_and_the_head_is_averaged():
    state, mean = after(COHORT), fedit().aggregate(COHORT)
    for n, x in mean.items():
        assert torch.equal(state.tensors[n if n == "head" else n + MEAN], x)


def test_the_residual_is_the_covariance_of_the_factors():
    for m in MODULES:
        d = mean_residual(pairs_of(COHORT, m))
        assert close(product(named_pairs.to_names({m: d}), m), covariance(COHORT, m))
        pairs = pairs_of(COHORT, m)
        longer = stack(pairs) + -lowrank.mean_factors(pairs)
        assert close(product(named_pairs.to_names({m: d}), m), longer.dense(), 1e-5)


def test_the_residual_has_a_block_less_than_there_are_clients():
    """Rank at most (n - 1) r, and no row more is sent; beyond it nothing is left."""
    for n in (1, 2, 3, 5):
        d = mean_residual(pairs_of([client(k, k + 1) for k in range(n)], "m"))
        assert d.rank == (n - 1) * RANK
    exact = covariance(COHORT, "m")
    assert torch.linalg.svdvals(exact)[2 * RANK] < 1e-9 * torch.linalg.svdvals(exact)[0]


def test_aggregating_takes_the_memory_of_the_stacks_and_of_one_update():
    """30 clients whose updates are made when they are asked for; beside the stacks there are two float64 sums."""
    clients = 30
    with Peak() as live:
        change = fedex_lora().aggregate(replace(client(k, k + 1), cohort=clients) for k in range(clients))
    one = sum(x.nbytes for x in client(0, 1).delta.values())
    stacks = sum(x.nbytes for n, x in change.items() if not n.endswith(MEAN))
    assert stacks > 0.9 * (clients - 1) * one
    of_a_module = stacks / len(MODULES)  # its residual is made beside its stack
    assert live.most <= stacks + one + of_a_module + 5 * one


def test_one_client_and_equal_factors_leave_no_residual():
    one = fedex_lora().aggregate(COHORT[:1])
    assert all(one[m + ".lora_A"].shape[0] == 0 for m in MODULES)
    for ending in (".lora_A", ".lora_B"):
        shared = {m + ending: client(9, 1).delta[m + ending] for m in MODULES}
        change = fedex_lora().aggregate([Update({**u.delta, **shared}, u.num_examples) for u in COHORT])
        assert all(product(change, m).norm() <= 1e-6 * product(COHORT[0].delta, m).norm() for m in MODULES)


def test_drift_of_the_base_is_the_sum_of_residuals_over_repeated_rounds():
    rounds = [[client(10 * t + k, k + t + 1) for k in range(3)] for t in range(6)]
    state = first_state()
    for updates in rounds:
        state = after(updates, state)
    for m in MODULES:
        assert close(product(state.tensors, m), sum(covariance(u, m) for u in rounds), 1e-5)


def test_after_aggregation_the_function_is_flora_s():
    """They differ only in what the next round starts from: FLoRA merges all of it, FedEx-LoRA keeps the mean pair."""
    f = flora()
    first = f.first_state(LAYOUT, RANK, SEED)
    total = f.server(first, f.aggregate(iter(COHORT)))
    for m in MODULES:
        assert close(effective(after(COHORT), m), product(total, m))


def test_the_order_of_clients_does_not_matter():
    for other in itertools.permutations(COHORT):
        assert all(close(effective(after(other), m), effective(after(COHORT), m)) for m in MODULES)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_a_truncated_residual_misses_the_discarded_singular_values_and_no_more(rank):
    """Eckart-Young: |R - R_q|^2 = sum of the other sigma^2; from rank (n - 1) r on nothing is missed."""
    for m in MODULES:
        exact = covariance(COHORT, m)
        change = fedex_lora(residual_rank=rank).aggregate(COHORT)
        assert change[m + ".lora_A"].shape[0] == rank
        left = torch.linalg.svdvals(exact)[rank:].square().sum().sqrt()
        assert abs((product(change, m) - exact).norm() - left) <= 1e-5 * exact.norm()
    whole = fedex_lora(residual_rank=40).aggregate(COHORT)
    assert all(close(product(whole, m), covariance(COHORT, m), 1e-5) for m in MODULES)
    assert all(whole[m + ".lora_A"].shape[0] == 2 * RANK for m in MODULES)


def test_without_the_residual_it_is_fedit():
    state = after(COHORT, residual_rank=0)
    mean = fedit().aggregate(COHORT)
    for m in MODULES:
        assert not product(state.tensors, m).any()
        assert torch.equal(product(state.tensors, m, MEAN), product(mean, m))


def test_uniform_weights_are_equal_numbers_of_examples():
    alike = [replace(u, num_examples=7) for u in COHORT]
    one, other = after(COHORT, weights="uniform"), after(alike)
    for m in MODULES:
        assert close(effective(one, m), effective(other, m))
    assert torch.allclose(one.tensors["head"], other.tensors["head"], rtol=1e-6)


def test_a_veteran_downloads_as_many_numbers_as_all_clients_uploaded():
    """P(sum r_k) and the head: (n - 1) r rows of residual and r of the mean pair; a newcomer, the whole sum."""
    recipe, state = fedex_lora(), first_state()
    for t in range(3):
        updates = [client(10 * t + k, k + 1) for k in range(2)]
        state = after(updates, state)
    sent = plan(state, state.version - 1)
    assert size(sent) == 2 * RANK * PER_RANK + 3
    data = messages.encode_plan(sent, "fp32")
    declared = 13 + int.from_bytes(data[7:9], "little") + int.from_bytes(data[9:13], "little")
    assert len(data) - declared == 4 * size(sent)
    assert size(plan(state, None)) == 3 * RANK * PER_RANK + RANK * PER_RANK + 3  # three rounds of (2 - 1) r, the mean
    assert size(plan(state, state.version)) == 0
    up = messages.encode_update(updates[0], "fp32")
    assert messages.body_bytes(recipe.spec(LAYOUT, sent), "fp32") == 4 * (RANK * PER_RANK + 3)
    assert len(up) == 13 + int.from_bytes(up[7:9], "little") + int.from_bytes(up[9:13], "little") + 4 * (
        RANK * PER_RANK + 3
    )


def test_late_joiners_and_returning_clients_hold_the_veterans_bits():
    """20 rounds of rank 4 into 17 x 15 matrices: the sum of residuals is dense from the second on."""
    recipe, state = fedex_lora(), first_state()
    held = {every: State(0, recipe.receive(None, plan(state, None))) for every in (1, 2, 5)}
    for t in range(20):
        state = after([client(10 * t + k, k + 1) for k in range(3)], state)
        newcomer = tensors.digest(recipe.receive(None, plan(state, None)))
        for every, old in held.items():
            if state.version % every == 0:
                now = recipe.receive(old, plan(state, old.version))
                assert tensors.digest(now) == newcomer, f"the client of every {every} rounds, version {state.version}"
                held[every] = State(state.version, now)
    assert all(state.tensors[m + ".lora_BA"].shape == LAYOUT.modules[m] for m in MODULES)
    assert any(n.startswith(moving_base.STEP) for n in state.tensors)


def layer(kind: str, out: int) -> nn.Module:
    """A model of one layer: GPT-2 style, with its weight stored as [in, out], or plain."""
    from transformers.pytorch_utils import Conv1D

    return nn.ModuleDict({"m": Conv1D(out, 4) if kind == "Conv1D" else nn.Linear(4, out)})


@pytest.mark.parametrize("kind", ["Conv1D", "Linear"])
@pytest.mark.parametrize("out", [4, 6])
def test_the_residual_is_added_the_right_way_round_in_either_layout(kind, out):
    """A square weight would take the transpose without a word, which is what the published code does to nn.Linear."""
    model = layer(kind, out)
    before = model.get_submodule("m").weight.detach().clone()
    layout = Layout(modules={"m": (out, 4)})
    recipe = fedex_lora()
    handle = ModelHandle(model, layout, recipe.space)
    updates = drawn(layout)
    state = recipe.first_state(layout, 2, SEED)
    state = State(1, recipe.server(state, recipe.aggregate(updates)))
    bare = Plan(RUN, 1, 1, rank=2)
    held = recipe.receive(None, replace(bare, tensors=recipe.downlink(state, None, bare)))
    recipe.start(handle, Turn(bare, held, "digest", Local(), SEED, SEED))
    moved = model.get_submodule("m").weight.detach() - before
    assert torch.allclose(moved.T if kind == "Conv1D" else moved, covariance(updates, "m").float(), atol=1e-5)
    assert close(dense(handle.change()[0]["m"]), mean_product(updates, "m"), 1e-5)


def drawn(layout: Layout) -> list[Update]:
    """Three clients' factors for any layout."""
    rngs = [torch.Generator().manual_seed(k) for k in range(3)]
    spec = LoRA().spec(layout, 2)
    return [Update({n: torch.randn(s.shape, generator=g) for n, s in spec.items()}, k + 1) for k, g in enumerate(rngs)]


def test_the_model_of_the_round_is_the_mean_of_the_clients_models():
    """End to end on the live model: base weight and adapter after the round are W + sum p_k B_k A_k."""
    t = toy(fedex_lora())
    state = t.step(t.state(), [t.update(t.state(), k) for k in range(3)])
    t.turn(t.plan(state, 0), 0)
    base, _ = t.handle.change()
    adapter = named_pairs.split(t.handle.read())[0]
    standing = {m: dense(base[m]) - dense(adapter[m]) for m in t.layout.modules}
    updates = [t.update(state, k, lr=0.3) for k in range(3)]
    t.turn(t.plan(t.step(state, updates), 1), 1)
    now, _ = t.handle.change()
    for m in t.layout.modules:
        assert close(dense(now[m]) - standing[m], mean_product(updates, m), 1e-4)


def test_reference_adds_the_transpose_at_uniform_weights_and_wants_square_weights():
    square = Layout(modules={"m": (5, 5)})
    updates = drawn(square)
    change = fedex_lora(variant="reference").aggregate(updates)
    alike = [replace(u, num_examples=1) for u in updates]
    assert close(product(change, "m"), covariance(alike, "m").T)
    assert fedex_lora(variant="reference").first_state(square, 2, SEED).version == 0
    with pytest.raises(ValueError, match=r"square weights, got m \[17, 15\]"):
        fedex_lora(variant="reference").first_state(LAYOUT, 2, SEED)


def test_what_it_declares():
    recipe = fedex_lora()
    assert not recipe.linear
    assert not recipe.unlike_ranks
    assert recipe.downlink_is_increment
    assert recipe.upload_kind == "values"
    assert recipe.reveals_clients
    assert not fedex_lora(residual_rank=0).reveals_clients


def test_single_clients_can_be_read_off_the_step_so_it_says_so():
    """From p_k, the mean pair and the step: B_2 = B + its block / p_2, and A_1 = A - sum p_k (A_k - A_1)."""
    change = fedex_lora().aggregate(COHORT)
    p = [3 / 20, 1 / 20, 16 / 20]
    b2 = change["m.lora_B.mean"] + change["m.lora_B"][:, :RANK] / p[1]
    assert close(b2, COHORT[1].delta["m.lora_B"], 1e-5)
    shift = sum(q * rows for q, rows in zip(p[1:], change["m.lora_A"].split(RANK), strict=True))
    assert close(change["m.lora_A.mean"] - shift, COHORT[0].delta["m.lora_A"], 1e-5)


def test_unlike_ranks_bad_options_and_nobody_are_refused():
    with pytest.raises(ValueError, match="first one has"):
        fedex_lora().aggregate([client(1, 1, rank=1), client(2, 1, rank=2)])
    with pytest.raises(ValueError, match="none"):
        fedex_lora().aggregate(iter([]))
    with pytest.raises(ValueError, match="residual_rank >= 0"):
        fedex_lora(residual_rank=-1)
    with pytest.raises(ValueError, match="weights"):
        fedex_lora(weights="equal")
    with pytest.raises(ValueError, match="variant"):
        fedex_lora(variant="published")
