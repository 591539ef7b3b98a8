"""What noise on factors does to the model: in proportion where one factor has it, with its square where both have."""

import math

import pytest
import torch

from fedft.privacy import integer_noise
from fedft.privacy.clipping import UNIT
from fedft.privacy.keyed_stream import Stream

SIZE, RANK, DRAWS = 64, 8, 40


def change(s: float, *, both: bool) -> float:
    """rms of |dW| over some draws: dW = (B + s xi)(A + s xi) - B A, A of PEFT's size, B small; s on each number."""
    rng = torch.Generator().manual_seed(0)
    a = (2 * torch.rand(RANK, SIZE, generator=rng) - 1).double() / math.sqrt(SIZE)
    b = 0.01 * torch.randn(SIZE, RANK, generator=rng).double()
    shapes = {"B": b.shape, **({"A": a.shape} if both else {})}
    total = 0.0
    for n in range(DRAWS):
        noise = {
            k: z.double() / UNIT for k, z in integer_noise.noise(Stream(bytes(32), bytes([n]) * 32), shapes, s).items()
        }
        after = (b + noise["B"]) @ (a + noise.get("A", torch.zeros(()).double()))
        total += float((after - b @ a).square().sum())
    return math.sqrt(total / DRAWS)


def expected(s: float, *, both: bool) -> float:
    """privacy.md 1.6: E|dW|^2 = s^2 o |A|^2, and of both s^2 (o |A|^2 + i |B|^2) + s^4 o i r."""
    rng = torch.Generator().manual_seed(0)
    a = (2 * torch.rand(RANK, SIZE, generator=rng) - 1).double() / math.sqrt(SIZE)
    b = 0.01 * torch.randn(SIZE, RANK, generator=rng).double()
    linear = SIZE * float(a.square().sum()) + (SIZE * float(b.square().sum()) if both else 0.0)
    return math.sqrt(s**2 * linear + (s**4 * SIZE * SIZE * RANK if both else 0.0))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("s", [0.001, 0.1, 3.0])
def test_the_model_moves_as_much_as_the_formula_says(s: float, both: bool) -> None:
    assert change(s, both=both) == pytest.approx(expected(s, both=both), rel=0.03)


def test_large_noise_moves_one_factor_in_proportion_and_two_by_its_square() -> None:
    slopes = [math.log(change(3.0, both=both) / change(1.0, both=both)) / math.log(3) for both in (False, True)]
    assert slopes[0] == pytest.approx(1.0, abs=0.02)
    assert slopes[1] == pytest.approx(2.0, abs=0.1)
