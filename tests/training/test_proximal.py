"""Proximal terms: their pull is the gradient of the penalty that they stand for."""

import pytest
import torch
from torch import nn

from fedft.config import Local
from fedft.contract import Learning, Turn
from fedft.training.proximal import Near, NearProduct
from fedft.update import Plan

TURN = Turn(Plan("", 0, 0), {}, "", Local(), 0, 0)
SCALE, MU = 1.5, 0.7


def drawn(seed: int) -> dict[str, torch.Tensor]:
    """A pair of rank 2, and a head that is in no pair."""
    rng = torch.Generator().manual_seed(seed)
    shapes = {"m.lora_A": (2, 5), "m.lora_B": (4, 2), "head": (3,)}
    return {n: torch.randn(shape, generator=rng) for n, shape in shapes.items()}


def pulls(term, learns: tuple[str, ...], x: dict, y: dict) -> dict[str, torch.Tensor | None]:
    """Gradients after one step of a turn that began at x, with what learns at y and gradients that were zero."""
    values = {n: nn.Parameter(v.clone()) for n, v in x.items()}
    learning = Learning(
        {n: values[n] for n in learns},
        {n: v for n, v in values.items() if n not in learns},
        lambda name: SCALE if name.endswith("lora_B") else 1.0,
    )
    course = term.begin(learning, TURN)
    for n in learns:
        values[n].data.copy_(y[n])
        values[n].grad = torch.zeros_like(values[n])
    course.step()
    return {n: v.grad for n, v in values.items()}


def penalty(product: bool, x: dict, y: dict) -> torch.Tensor:
    """(mu / 2) dist(y, x)^2."""
    apart = [y["head"] - x["head"]]
    if product:
        apart.append(SCALE * (y["m.lora_B"] @ y["m.lora_A"] - x["m.lora_B"] @ x["m.lora_A"]))
    else:
        apart += [y[n] - x[n] for n in ("m.lora_A", "m.lora_B")]
    return MU / 2 * sum(a.square().sum() for a in apart)


@pytest.mark.parametrize("learns", [("m.lora_A", "m.lora_B", "head"), ("m.lora_B",), ("m.lora_A", "head")], ids=str)
@pytest.mark.parametrize("term", [Near(MU), NearProduct(MU)], ids=lambda t: type(t).__name__)
def test_the_pull_is_the_gradient_of_the_penalty(term, learns):
    """Against autograd in float64; a factor that does not learn stays at x, and gets no gradient."""
    x, far = drawn(1), drawn(2)
    leaf = {n: (far if n in learns else x)[n].double().requires_grad_(n in learns) for n in x}
    penalty(isinstance(term, NearProduct), {n: v.double() for n, v in x.items()}, leaf).backward()
    got = pulls(term, learns, x, far)
    assert {n for n, g in got.items() if g is not None} == set(learns)
    assert all(torch.allclose(got[n].double(), leaf[n].grad, rtol=1e-5, atol=1e-5) for n in learns)


@pytest.mark.parametrize("term", [Near(MU), NearProduct(MU)], ids=lambda t: type(t).__name__)
def test_there_is_no_pull_where_a_turn_begins(term):
    x = drawn(1)
    assert all(float(g.abs().max()) < 1e-6 for g in pulls(term, tuple(x), x, x).values())
