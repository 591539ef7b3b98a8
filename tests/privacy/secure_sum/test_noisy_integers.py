"""Integers with noise in shares: clipped exactly, noise as much as is charged whoever is lost, epsilon as is known."""

import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution as pld
from secure_blocks import begun, set_up, spec

from fedft import run_file
from fedft.errors import ConfigError, PlanRefused
from fedft.privacy import accountant
from fedft.privacy.accountant import Release
from fedft.privacy.keyed_stream import Stream
from fedft.privacy.secure_sum import noise_shares, noisy_integers, ring
from fedft.privacy.secure_sum.context import Spec
from fedft.privacy.tables import Privacy
from fedft.update import MEMBERS, Plan

SAID: dict[str, Any] = {"mode": "central-dp", "secagg": "on", "clip": 0.5, "noise_multiplier": 1.0, "delta": 1e-3}
FIVE = Plan("", 0, 0, extra={MEMBERS: 5})


def of(length: int, z: float = 1.0, bits: int = 24) -> Spec:
    """A vector of so many numbers, of a clip of 1."""
    plain = spec(length, bits)
    return replace(plain, noise=z * plain.largest)


def stream(*named: object) -> Stream:
    """Noise of a key and a work that are told apart by these."""
    return Stream(bytes(32), hashlib.sha256(repr(named).encode()).digest())


@pytest.mark.parametrize("bits", [12, 16, 24])
def test_integers_of_an_update_are_never_longer_than_the_clip(bits: int) -> None:
    """Whatever it is, and however it is rounded."""
    wanted, draws = of(64, bits=bits), torch.Generator().manual_seed(1)
    longest = 0.0
    for n in range(300):
        scale = 10.0 ** float(torch.empty(()).uniform_(-3, 30, generator=draws))
        found = noisy_integers.clipped({"w": torch.randn(64, generator=draws) * scale}, wanted)
        q, cut = ring.quantised({"w": found["w"].numpy()}, wanted, n)
        noisy_integers.check_norm(q, wanted)
        assert cut == 0
        longest = max(longest, math.sqrt(float(np.square(q.astype(float)).sum())) / wanted.largest)
    assert 0.98 < longest <= 1
    with pytest.raises(RuntimeError, match="longer than the clip"):
        noisy_integers.check_norm(np.full(64, wanted.largest // 4, np.int32), wanted)


def test_what_is_zero_or_not_finite_adds_nothing() -> None:
    assert not noisy_integers.clipped({"w": torch.zeros(4)}, of(4))["w"].any()
    found = noisy_integers.clipped({"v": torch.ones(2), "w": torch.tensor([1.0, math.nan])}, of(4))
    assert not any(x.any() for x in found.values())


def test_opened_sums_have_the_noise_that_is_promised_whoever_is_lost() -> None:
    """16 rounds of 500 numbers, in every other one a site of five is lost; variance is |U| / t (z C / step)^2."""
    wanted = of(500)
    sites, found = set_up(begun(5, wanted)), {4: [], 5: []}
    for slot in range(16):
        rng = np.random.default_rng(slot)
        q = {name: rng.integers(-1000, 1000, 500).astype(np.int32) for name in sites.members}
        noisy = {n: noisy_integers.with_share(x, wanted, FIVE, stream(n, slot)) for n, x in q.items()}
        lost = ["site-3"] if slot % 2 else []
        total = sites.sum(slot, noisy, lost=lost)
        found[5 - len(lost)].append(total - sum(x.astype(np.int64) for n, x in q.items() if n not in lost))
    for count, noise in found.items():
        drawn = np.array(noise) / wanted.noise
        assert drawn.shape == (8, 500)
        assert drawn.var() == pytest.approx(count / 4, rel=5 * math.sqrt(2 / drawn.size))
        assert drawn.var() > 1 - 5 * math.sqrt(2 / drawn.size)
        assert abs(drawn.mean()) < 5 * math.sqrt(count / 4 / drawn.size)


def test_a_share_is_one_streams_and_tells_nothing_of_another() -> None:
    q = np.arange(500, dtype=np.int32)
    once, again, other = (noisy_integers.with_share(q, of(500), FIVE, stream(n)) - q for n in (1, 1, 2))
    assert (once == again).all()
    assert abs(np.corrcoef(once, other)[0, 1]) < 5 / math.sqrt(500)


@pytest.mark.parametrize("members", [None, True, 2, 129, "5", 5.0])
def test_a_plan_has_to_say_how_many_there_are(members: Any) -> None:
    extra = {} if members is None else {MEMBERS: members}
    with pytest.raises(PlanRefused) as refused:
        noisy_integers.with_share(np.zeros(4, np.int32), of(4), Plan("", 0, 0, extra=extra), stream())
    assert refused.value.code == "secagg_threshold"


def test_a_sum_of_discrete_gaussians_costs_what_one_continuous_one_does() -> None:
    """The sheet's figure at deviation 8, sensitivity 8, 20 times; and the least noise that is let through, of three."""
    exact = pld.from_discrete_gaussian_mechanism(8, sensitivity=8).self_compose(20).get_epsilon_for_delta(1e-5)
    assert exact == pytest.approx(28.371, abs=0.02)
    assert exact == pytest.approx(accountant.epsilon([Release(1.0, 1.0, 20)], 1e-5), rel=1e-3)
    least = noise_shares.LEAST_DEVIATION * math.sqrt(3)
    exact = pld.from_discrete_gaussian_mechanism(least, sensitivity=7).self_compose(20).get_epsilon_for_delta(1e-5)
    assert exact == pytest.approx(accountant.epsilon([Release(least / 7, 1.0, 20)], 1e-5), rel=5e-3)
    assert noise_shares.distance(128, noise_shares.LEAST_DEVIATION) < 1e-60


def test_clients_and_server_find_the_same_noise_for_an_epsilon() -> None:
    said = Privacy(**{**SAID, "noise_multiplier": None, "epsilon": 8.0, "rounds": 20})
    z = noisy_integers.noise_multiplier(said)
    assert len(f"{z:g}".replace(".", "").lstrip("0")) <= 4
    assert 7.8 < accountant.epsilon([Release(z, 1.0, 20)], 1e-3) <= 8.0
    assert noisy_integers.noise_multiplier(Privacy(**SAID)) == 1.0


@pytest.mark.parametrize(
    ("wanted", "n", "said"),
    [
        (of(4, bits=3), 5, "wanted 8 at least, or more bits"),
        (of((1 << 18) + 1), 5, "262,144 at most: fedkseed, ffa_lora, or a lower rank"),
        (of(4096, bits=12), 5, "adds 3.1% to their norm"),
        (of(4, 30.0), 5, "have room for 0 clients, not 5"),
        (of(4, 12.0), 120, "have room for"),
    ],
)
def test_noise_that_cannot_be_in_shares_is_refused_before_any_work(wanted: Spec, n: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        noisy_integers.check(wanted, n)
    assert "\n" not in str(refused.value)
    noisy_integers.check(of(4096), 100)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"adaptive_quantile": 0.5},
            r"\[privacy\] adaptive_quantile = 0.5 and mode = \"central-dp\" with secagg = 'on'",
        ),
        ({"balance": True}, r"\[privacy\] balance = True and mode"),
        ({"cohort": "poisson"}, r"cohort = 'poisson' and mode .*: each client hears who is in a sum; wanted"),
        ({"evaluate": "noisy"}, r"evaluate = 'noisy' and mode"),
        ({"rounds": 5}, r"\[privacy\] rounds and epsilon belong together"),
        ({"noise_multiplier": None, "epsilon": 8.0}, r"\[privacy\] rounds and epsilon belong together"),
    ],
)
def test_keys_that_need_one_who_sees_updates_are_refused_by_name(keys: dict[str, Any], said: str) -> None:
    privacy = {k: x for k, x in {**SAID, **keys}.items() if x is not None}
    with pytest.raises(ConfigError, match=said):
        run_file.from_dict({"privacy": privacy, "server": {"rounds": 5}})
    run_file.from_dict({"privacy": SAID, "server": {"rounds": 5}})
