"""Evaluations of sites of secure sums: the mean that a simulation measures, masked or not, and no single number."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from deployed import Site
from summed import NAMES, Summed
from watched_sums import Watching, kind_of

from fedft import run_file
from fedft.errors import ConfigError
from fedft.privacy.secure_sum.messages import Step
from fedft.security.sealed import OVERHEAD, Kind

SUMMED = {"evaluate": "summed"}


def test_the_mean_is_the_simulations_and_no_line_has_a_single_site(tmp_path: Path) -> None:
    masked = Summed(tmp_path / "on", noise=SUMMED, link=Watching, rounds=2)
    clear = Summed(tmp_path / "clear", "clear", noise=SUMMED, rounds=2)
    local = Summed(tmp_path / "local", rounds=2)
    assert masked.run().digest == clear.run().digest == local.simulated().digest
    for a, b, c in zip(masked.metrics.lines, clear.metrics.lines, local.metrics.lines, strict=True):
        found = [x["loss"] for x in c["evaluation"].values()]
        assert len(found) == 5
        assert a["loss"] == b["loss"] == pytest.approx(sum(found) / 5, abs=20 / 2**22)
        assert a["accuracy"] == b["accuracy"] == 0
        assert a["evaluation"] == {}
        assert a["refused"] == []
    assert isinstance(masked.link, Watching)
    masked.link.check()
    assert {(block, slot) for _, block, slot in masked.link.opened} == {(0, slot) for slot in range(5)}
    first = masked.metrics.lines[0]["evaluation_bytes"]
    assert set(first["up"]) == {*NAMES}
    assert min(first["up"].values()) > 4 * 49


class Shy(Watching):
    """Sites that open no evaluation of the first state."""

    asked = 0

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message."""
        if kind_of(payload) is Kind.SECAGG and payload[OVERHEAD + 6] == Step.UNMASK and payload[OVERHEAD + 7] == 0:
            return []
        return super().answers(site, payload)


def test_an_evaluation_that_too_few_open_is_left_out_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Summed(tmp_path / "on", noise=SUMMED, link=Shy, rounds=2, attempts=1)
    digest = run.run().digest
    assert digest == Summed(tmp_path / "clear", "clear", rounds=2).run().digest
    assert ["loss" in line for line in run.metrics.lines] == [False, True, True]
    assert "the state of round 0 is not measured" in caplog.text


@pytest.mark.parametrize("noise", [{}, SUMMED])
def test_the_log_of_a_server_says_where_nothing_is_measured(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, noise: Mapping[str, str]
) -> None:
    Summed(tmp_path / "on", noise=noise, rounds=1).run()
    said = "[privacy] secagg = 'on': sites measure nothing for a server"
    assert (said in caplog.text) is (not noise)


class Dead(Watching):
    """A server that dies once all have measured the first state, before it hears of any opening."""

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        """What the site says to a message."""
        said = super().answers(site, payload)
        if kind_of(payload) is Kind.SECAGG and payload[OVERHEAD + 6] == Step.UNMASK and site.name == NAMES[-1]:
            raise KeyboardInterrupt
        return said


def test_a_state_is_measured_again_after_a_kill_over_the_same_sites(tmp_path: Path) -> None:
    run = Summed(tmp_path, noise=SUMMED, link=Dead, rounds=1)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    again = Summed(tmp_path, noise=SUMMED, sites=run.sites, link=Watching, rounds=1)
    again.run()
    assert ["loss" in line for line in again.metrics.lines] == [True, True]
    assert isinstance(again.link, Watching)
    assert {slot for _, _, slot in again.link.opened} == {1, 2, 3}
    assert isinstance(run.link, Watching)
    both = {k: v | again.link.opened.get(k, set()) for k, v in run.link.opened.items()}
    assert max(map(len, both.values())) == 1


@pytest.mark.parametrize(
    "privacy",
    [{}, {"secagg": "on", "mode": "central-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3}],
)
def test_a_summed_evaluation_is_of_secure_sums_without_a_mode(privacy: Mapping[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\[privacy\] evaluate = 'summed' and mode = "):
        run_file.from_dict({"privacy": {**privacy, **SUMMED}})
