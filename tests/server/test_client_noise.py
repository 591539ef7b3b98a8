"""What lines say of noise at clients: the largest account where it is known, and nothing that would tell of rows."""

from typing import Any

import pytest

from fedft.privacy.accountant import Release, epsilon
from fedft.privacy.tables import Privacy
from fedft.server.client_noise import OWN, SEEDED, said


def privacy(mode: Any = "example-dp", **keys: Any) -> Privacy:
    return Privacy(**{"mode": mode, "clip": 1.0, "delta": 1e-4, "noise_multiplier": 2.0, **keys})


def test_a_simulation_says_the_largest() -> None:
    assert said(privacy(), 3, 1.5, 3) == {"epsilon": 1.5, "delta": 1e-4}


@pytest.mark.parametrize("largest", [None, 1.5])
def test_seeded_noise_has_no_epsilon(largest: float | None) -> None:
    assert said(privacy(noise="seeded"), 3, largest, 3) == {"epsilon": None, "epsilon_why": SEEDED}


def test_a_server_says_what_is_public_and_no_more() -> None:
    assert said(privacy(), 3, None, 3) == {"epsilon": None, "epsilon_why": OWN}
    target = privacy(noise_multiplier=None, epsilon=8.0)
    assert said(target, 3, None, 3) == {"epsilon": 8.0, "delta": 1e-4}
    longer = said(target, 4, None, 3)
    assert longer["epsilon"] is None, "what is said is never below what was spent"
    assert "8 was for 3 rounds" in longer["epsilon_why"]
    assert said(target, 4, 8.4, 3)["epsilon"] == 8.4
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    found = said(privacy("local-dp"), 3, None, 3)
    assert found == {"epsilon": pytest.approx(epsilon([Release(1.0, 1.0, 3)], 1e-4)), "delta": 1e-4}
