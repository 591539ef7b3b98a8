"""FFA-LoRA: with A frozen and shared, averaging B is averaging the products."""

from dataclasses import replace

import pytest
import torch

from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.config import Local
from fedft.contract import Layout, State
from fedft.models.handle import ModelHandle
from fedft.strategies.fedit import fedit
from fedft.strategies.ffa_lora import ffa_lora
from fedft.testing import RUN, SEED, Ready, toy
from fedft.update import Plan, Update
from fedft.wire import messages

OUT, IN, RANK = 9, 4, 3
LAYOUT = Layout(modules={"m": (OUT, IN), "n": (IN, OUT)}, head={"head.weight": (2, OUT)})
A, B = "m.lora_A", "m.lora_B"
BATCH = {"x": torch.linspace(-1, 1, 40).reshape(5, 8), "labels": torch.linspace(1, -1, 20).reshape(5, 4)}


def deltas(seed: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    spec = ffa_lora().spec(LAYOUT, Plan("", 0, 0, rank=RANK))
    return {n: torch.randn(s.shape, generator=rng) for n, s in spec.items()}


def test_the_aggregate_of_products_is_the_product_of_the_aggregate():
    a0 = LoRA().initial(LAYOUT, RANK, SEED)[A].double()
    updates = [Update(deltas(k), n) for k, n in enumerate((3, 1, 20))]
    mean = sum(u.num_examples / 24 * u.delta[B].double() @ a0 for u in updates)
    got = ffa_lora().aggregate(updates)[B].double() @ a0
    assert (got - mean).norm() <= 1e-6 * mean.norm()


def test_a_is_absent_from_state_download_and_upload():
    state = ffa_lora().first_state(LAYOUT, RANK, SEED)
    plan = Plan("", 0, 0, rank=RANK)
    names = {B, "n.lora_B", "head.weight"}
    assert state.tensors.keys() == names
    assert ffa_lora().downlink(state, None, plan).keys() == names
    assert ffa_lora().spec(LAYOUT, plan).keys() == names


def test_a_stays_bitwise_and_frozen_on_every_client_through_training():
    """Checked on the live model after local steps, where a library may have switched gradients on again."""
    t = toy(ffa_lora())
    frozen = LoRA().initial(t.layout, 2, SEED)
    state = t.state()
    for _ in range(3):
        updates = []
        for k in range(3):
            updates.append(t.update(state, k, lr=0.5))
            live = {n: p for n, p in t.handle.model.named_parameters() if ".lora_A." in n}
            assert len(live) == 2
            for name, p in live.items():
                assert torch.equal(p, frozen[name.split(".lora_A.")[0] + ".lora_A"])
                assert not p.requires_grad
                assert p.grad is None
            assert not any("lora_A" in n for n in updates[-1].delta)
            assert any(x.any() for x in updates[-1].delta.values())
        state = t.step(state, updates)


def test_a_is_drawn_from_the_runs_seed_not_the_clients():
    t = toy(ffa_lora())
    found = []
    for client in range(2):
        t.turn(t.plan(t.state(), client), client)
        found.append({n: p.detach().clone() for n, p in t.handle.model.named_parameters() if ".lora_A." in n})
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_upload_bytes_are_out_over_in_plus_out_of_loras():
    """One module of 9 x 4 at rank 3: B has 27 floats of 39. Headers apart, 27 / 39 = 9 / (9 + 4)."""
    layout = Layout(modules={"m": (OUT, IN)})
    plan = Plan(RUN, 0, 0, rank=RANK)
    size = {}
    for recipe in (ffa_lora(), fedit()):
        spec = recipe.spec(layout, plan)
        update = Update({n: torch.ones(s.shape) for n, s in spec.items()}, 1, run=RUN)
        size[recipe.name] = sum(x.numel() for x in update.delta.values())
        header = len(messages.encode_update(update, "fp32")) - 4 * size[recipe.name]
        assert 0 < header < 160, "fixed and per tensor, whatever the tensors' sizes"
    assert size["ffa_lora"] * (IN + OUT) == size["fedit"] * OUT


@pytest.mark.parametrize("c", [2.0, 0.5])
def test_sgd_sees_alpha_and_learning_rate_only_through_s_squared_eta(c):
    """(c s, eta / c^2) moves s B A0 alike: grad_B = s G A0^T, so s dB = -eta s^2 G A0^T A0 (G at the same point)."""

    def trained(alpha: float, lr: float) -> dict[str, torch.Tensor]:
        t = toy(ffa_lora())
        t = replace(t, handle=ModelHandle(t.handle.model, t.layout, t.recipe.space, lora_alpha=alpha))
        turn = t.turn(t.plan(t.state(), 0, lr=lr, steps=5), 0)
        turn = replace(turn, local=Local(optimizer="sgd", max_grad_norm=None))
        return t.recipe.local(t.handle, Ready(BATCH), turn)[0]

    plain, scaled = trained(4.0, 0.1), trained(4.0 * c, 0.1 / c**2)
    assert tensors.norm(tensors.sub(plain, scaled)) < 1e-5 * tensors.norm(plain)


def test_the_head_is_averaged_like_any_factor():
    updates = [Update(deltas(k), n) for k, n in enumerate((3, 1))]
    want = (3 * updates[0].delta["head.weight"].double() + updates[1].delta["head.weight"].double()) / 4
    state = State(0, ffa_lora().first_state(LAYOUT, RANK, SEED).tensors)
    after = ffa_lora().server(state, ffa_lora().aggregate(updates))
    assert (after["head.weight"] - want).abs().max() < 1e-6
