"""Secure sums with noise in shares: the same bytes masked, in the clear and simulated; charges; no noise twice."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from summed import FRESH, NAMES, SHARED, Summed
from watched_sums import Silent, Watching

from fedft.client.own_privacy import Budget
from fedft.client.privacy_ledger import Ledger
from fedft.errors import RunPaused
from fedft.privacy import accountant
from fedft.privacy.accountant import Release
from fedft.privacy.secure_sum import noisy_integers
from fedft.server.masked_rounds import MaskedRounds
from fedft.update import MEMBERS


class Scalars(Watching):
    """Of the toy's fedkseed."""

    numbers = 65


class Mute(Silent):
    """The same, with sites that open nothing."""

    numbers = 65
    mute = NAMES


def shared(
    folder: Path, secagg: str = "on", name: str = "fedkseed", noise: Mapping[str, Any] = SHARED, **more: Any
) -> Summed:
    """A run of four rounds of five sites."""
    return Summed(folder, secagg, name, noise=noise, **more)


@pytest.mark.parametrize("name", ["fedkseed", "ffa_lora", "rolora"])
def test_noise_in_shares_is_the_same_masked_in_the_clear_and_simulated(tmp_path: Path, name: str) -> None:
    masked, clear = shared(tmp_path / "on", name=name), shared(tmp_path / "clear", "clear", name)
    digest = masked.run().digest
    assert digest == clear.run().digest
    assert digest == shared(tmp_path / "local", name=name).simulated().digest
    assert digest == shared(tmp_path / "both", "clear", name).simulated().digest
    assert digest != Summed(tmp_path / "without", "on", name).run().digest
    assert [line["version"] for line in masked.metrics.lines] == [0, 1, 2, 3, 4]
    assert all(line["epsilon"] is None and line["epsilon_why"] == "seeded noise" for line in masked.metrics.lines)


def test_lines_and_ledgers_say_what_was_spent_and_against_whom(tmp_path: Path) -> None:
    """The server's account and the sites' are of four Gaussians of z; with one of five that colludes three quarters of
    their variance are left."""
    run = shared(tmp_path, noise=FRESH)
    run.run()
    line = run.metrics.lines[-1]
    assert line["epsilon"] == pytest.approx(accountant.epsilon([Release(1.0, 1.0, 4)], 1e-3), rel=1e-6)
    assert line["colluding"] == 1
    weaker = accountant.epsilon([Release(math.sqrt(3 / 4), 1.0, 4)], 1e-3)
    assert line["epsilon_colluding"] == pytest.approx(weaker, rel=1e-6)
    assert line["privacy"] == {"clip": 0.1, "noise": pytest.approx(0.1 * math.sqrt(5 / 4) / 5)}
    for name in NAMES:
        book = Ledger(tmp_path / "sites" / name).read()
        assert [(c.round, c.mode, c.z, c.steps) for c in book.charges] == [(r, "central-dp", 1.0, 1) for r in range(4)]
        assert all(c.key and c.work != "promised" for c in book.charges)
        assert accountant.epsilon(book.releases, 1e-3) == pytest.approx(line["epsilon"], rel=1e-6)
    assert not any(name in json.dumps(x.get("privacy")) for x in run.metrics.lines for name in NAMES)
    assert not list((tmp_path / "state").glob("noise-*.key"))


def test_without_masks_there_is_no_epsilon_and_a_site_books_its_own_share_alone(tmp_path: Path) -> None:
    run = shared(tmp_path, "clear", noise=FRESH, rounds=1)
    run.run()
    assert run.metrics.lines[-1]["epsilon"] is None
    assert run.metrics.lines[-1]["epsilon_why"] == "secagg = 'clear', so the server sees each update"
    assert [c.z for c in Ledger(tmp_path / "sites" / "anna").read().charges] == [0.5]  # t = 4


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, np.ndarray]]:
    """Every share that a client has added, with the slot of its masks, in order."""
    found: list[tuple[int, np.ndarray]] = []
    plain = noisy_integers.with_share

    def seen(q: np.ndarray, spec: Any, plan: Any, stream: Any) -> np.ndarray:
        noisy = plain(q, spec, plan, stream)
        assert plan.extra[MEMBERS] == 5
        found.append((int(plan.extra.get("block", 0)), noisy.astype(np.int64) - q))
        return noisy

    monkeypatch.setattr(noisy_integers, "with_share", seen)
    return found


def test_the_same_work_in_another_slot_has_noise_of_its_own_and_is_charged_again(
    tmp_path: Path, drawn: list[tuple[int, np.ndarray]]
) -> None:
    """As when the server has lost its block behind the updates; nobody trains again."""
    run = shared(tmp_path, noise=FRESH, link=Mute, attempts=1, rounds=1)
    with pytest.raises(RunPaused, match="0 of 5 clients have opened"):
        run.run()
    assert len(drawn) == 5
    shutil.rmtree(tmp_path / "state" / "secagg")
    again = shared(tmp_path, noise=FRESH, sites=run.sites, link=Scalars, rounds=1)
    again.run()
    assert {name: site.trained for name, site in again.sites.items()} == dict.fromkeys(NAMES, 1)
    assert len(drawn) == 10
    assert {block for block, _ in drawn[:5]} != {block for block, _ in drawn[5:]}
    for n, (_, a) in enumerate(drawn):
        for _, b in drawn[:n]:
            assert (a != b).mean() > 0.99
    for name in NAMES:
        assert len(Ledger(tmp_path / "sites" / name).read().charges) == 2
    assert again.metrics.lines[-1]["epsilon"] == pytest.approx(
        accountant.epsilon([Release(1.0, 1.0, 2)], 1e-3), rel=1e-6
    )


def test_opened_sums_have_the_noise_that_is_charged(tmp_path: Path, drawn: list[tuple[int, np.ndarray]]) -> None:
    """All shares of a round together: 5 / 4 of (z C / step)^2, in each of 8 rounds of 65 numbers."""
    run = shared(tmp_path, noise=FRESH, rounds=8)
    run.run()
    sums = np.array([np.sum([x for _, x in drawn[k : k + 5]], axis=0) for k in range(0, 40, 5)])
    assert sums.shape == (8, 65)
    sigma = 2**23 - 1
    assert sums.var() / sigma**2 == pytest.approx(5 / 4, rel=5 * math.sqrt(2 / sums.size))
    assert abs(sums.mean()) < 5 * sigma * math.sqrt(5 / 4 / sums.size)


def test_a_plan_that_counts_more_clients_than_there_are_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Their shares would be too small."""
    monkeypatch.setattr(MaskedRounds, "members", property(lambda self: 50))
    with pytest.raises(RunPaused, match="0 of 5 updates admitted"):
        shared(tmp_path, noise=FRESH, rounds=1, attempts=1).run()
    assert "secagg_threshold: noise in shares of other than the 5 members" in caplog.text


def test_a_site_ends_its_part_where_its_own_budget_does(tmp_path: Path) -> None:
    """Before it trains, and before it has said anything in the round's slot."""
    run = shared(tmp_path, noise=FRESH, rounds=2, attempts=1)
    joined = run.sites["anna"]._join

    def bounded(job: Any) -> Any:
        client = joined(job)
        client.privacy.budget = Budget(accountant.epsilon([Release(1.0)], 1e-3) * 1.01, 1e-3)
        return client

    run.sites["anna"]._join = bounded  # type: ignore[method-assign]
    run.sites["anna"].start()
    run.run()
    assert [list(line["weights"]) for line in run.metrics.lines[1:]] == [[*NAMES], [*NAMES[1:]]]
    assert run.sites["anna"].trained == 2
    assert [r["code"] for r in run.metrics.lines[2]["refused"]] == ["privacy_budget"]
