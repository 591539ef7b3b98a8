"""The shipped run file of secure sums, with its smallest settings: masked, in the clear, killed and resumed."""

import json
import stat
from pathlib import Path

import pytest

from fedft import run_file
from fedft.errors import ConfigError
from fedft.simulations import run as runs
from fedft.simulations.run import QUICKSTART

PRESET = QUICKSTART.with_name("secagg.toml")
SMALL = ("server.rounds=2", "local.steps=2", "local.batch_size=2", "data.max_length=48", "eval.max_rows=2",
         "strategy.K=16", "server.loggers=[]")  # fmt: skip


class Stop(BaseException):
    """What SIGKILL is to this test."""


def simulated(base: Path, out: Path, *sets: str, **more: object) -> runs.Run:
    config = run_file.load(PRESET, [f"model.id='{base}'", *SMALL, *sets])
    return runs.simulate(config, out=out, **more)  # type: ignore[arg-type]


NOISE = ("privacy.mode='central-dp'", "privacy.clip=0.1", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3")
SEEDED = (*NOISE, "privacy.noise='seeded'")


@pytest.mark.parametrize("noise", [(), SEEDED], ids=["bare", "noisy"])
def test_the_preset_ends_with_the_same_bytes_masked_in_the_clear_and_resumed(
    tiny_base: Path, tmp_path: Path, noise: tuple[str, ...]
) -> None:
    clear = simulated(tiny_base, tmp_path / "clear", "privacy.secagg='clear'", *noise)
    masked = simulated(tiny_base, tmp_path / "on", *noise)
    digests = [line["state_digest"] for line in masked.lines]
    assert digests == [line["state_digest"] for line in clear.lines]
    assert len(set(digests)) == 3

    def kill(kind: str, info: dict[str, object]) -> None:
        if kind == "admitted" and info["round"] == 1 and info["client"] == "client-2":
            raise Stop

    with pytest.raises(Stop):
        simulated(tiny_base, tmp_path / "killed", *noise, observe=kill)
    resumed = simulated(tiny_base, tmp_path / "killed", *noise, resume=True)
    assert resumed.lines[-1]["state_digest"] == digests[-1]
    line = json.loads((tmp_path / "on" / "metrics.jsonl").read_text().splitlines()[1])
    assert line["weights"] == dict.fromkeys(line["weights"], 1)
    assert len(line["weights"]) == 5
    assert set(line["secagg_bytes"]["up"].values()) == {14 + 608 + 14 + 4 * 1040 + 14 + 14 + 5 * 32}
    key = tmp_path / "on" / "clients" / "client-0" / "signing.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_the_preset_with_noise_says_what_it_spent_and_against_whom(tiny_base: Path, tmp_path: Path) -> None:
    run = simulated(tiny_base, tmp_path / "run", *NOISE)
    said = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert said["epsilon"] == run.lines[-1]["epsilon"] > 0
    assert (said["colluding"], said["privacy"]) == (1, "central-dp")
    assert said["epsilon_colluding"] > said["epsilon"]
    key = tmp_path / "run" / "clients" / "client-0" / "privacy.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_too_few_clients_are_refused_before_any_training(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4 clients, \[privacy\] min_cohort is 5"):
        simulated(tiny_base, tmp_path / "run", "data.clients=4")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
