"""What a simulation's clients have spent, and runs with their noise: resumed, repeated, dealt out to workers."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.client import noise_key
from fedft.client.privacy_ledger import Charge, Ledger
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.errors import StateDamaged
from fedft.privacy.accountant import Release, epsilon, merged
from fedft.privacy.keyed_stream import KEY_BYTES
from fedft.simulations import run as runs
from fedft.simulations.client_accounts import ClientAccounts, costliest

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

DELTA = 1e-3


def charge(round: int, z: float = 1.0, q: float = 0.1) -> Charge:
    return Charge("a" * 16, round, f"{round}", "k", "example-dp", z, q, 2)


def test_the_client_that_has_paid_most_is_found(tmp_path: Path) -> None:
    assert ClientAccounts(tmp_path, DELTA).largest() == 0.0
    for name, charges in {"a": [charge(0)], "b": [charge(0, q=0.3), charge(1, q=0.3)], "c": [charge(0, 4.0)]}.items():
        for c in charges:
            Ledger(tmp_path / "clients" / name).charge(c)
    accounts = ClientAccounts(tmp_path, DELTA)
    assert accounts.largest() == pytest.approx(epsilon([Release(1.0, 0.3, 4)], DELTA))
    Ledger(tmp_path / "clients" / "a").charge(charge(1))
    assert accounts.largest() == pytest.approx(epsilon([Release(1.0, 0.3, 4)], DELTA))
    (tmp_path / "clients" / "a" / "privacy-ledger.fedft").write_bytes(b"torn")
    with pytest.raises(StateDamaged):
        accounts.largest()


def test_only_who_may_have_paid_most_is_looked_at() -> None:
    one = [merged([Release(z, q, n)]) for z, q, n in ((1.0, 0.1, 3), (1.0, 0.2, 3), (2.0, 0.2, 3), (2.0, 0.1, 9))]
    mixed = merged([Release(1.0, 0.1, 1), Release(1.0, 0.1, 1), Release(3.0, 0.1, 1)])
    assert mixed == {Release(1.0, 0.1, 2), Release(3.0, 0.1, 1)}
    assert costliest([*one, mixed]) == {one[1], one[3], mixed}
    assert costliest([frozenset()]) == set()


@pytest.fixture
def config_of(tiny_base: Path) -> Callable[..., RunConfig]:
    def of(**privacy: Any) -> RunConfig:
        said = {"mode": "local-dp", "clip": 0.1, "noise_multiplier": 2.0, "delta": DELTA, **privacy}
        small = ["local.batch_size=4", "data.max_length=48", "data.clients=2", "eval.max_rows=4", "local.steps=2"]
        more = ["server.rounds=2", "strategy.name=ffa_lora", "clients.rank=2", f"model.id='{tiny_base}'"]
        private = [f"privacy.{k}={json.dumps(v)}" for k, v in said.items()]
        return run_file.load(runs.QUICKSTART, [*small, *more, *private])

    return of


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_that_dies_in_a_turn_ends_as_one_that_did_not(
    config_of: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise of the operating system's, which gives both runs the same keys here: the same bytes and charges."""
    config, trained, made = config_of(), 0, count(1)
    monkeypatch.setattr(noise_key, "new_key", lambda: bytes([next(made)]) * KEY_BYTES)
    steps = Client.steps

    def dying(self: Client, turn: Any) -> Any:
        nonlocal trained
        trained += 1
        if trained == 4:  # the second client of the second round: its charge is on the disk
            raise KeyboardInterrupt
        return steps(self, turn)

    monkeypatch.setattr(Client, "steps", dying)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        runs.simulate(config, out=tmp_path / "a")
    before = {p.parent.name: p.read_bytes() for p in tmp_path.glob("a/clients/*/privacy-ledger.fedft")}
    keys = {p.read_bytes() for p in tmp_path.glob("a/clients/*/privacy.key")}
    assert len(before) == len(keys) == 2
    monkeypatch.setattr(Client, "steps", steps)
    done = runs.simulate(config, out=tmp_path / "a", resume=True)
    assert before == {p.parent.name: p.read_bytes() for p in tmp_path.glob("a/clients/*/privacy-ledger.fedft")}
    assert [len(Ledger(p).read().charges) for p in (tmp_path / "a" / "clients").iterdir()] == [2, 2]

    other = tmp_path / "b"
    made = count(1)
    undisturbed = runs.simulate(config, out=other)
    assert undisturbed.summary["state_digest"] == done.summary["state_digest"]
    spent = [line["epsilon"] for line in lines_of(tmp_path / "a")]
    assert spent == [line["epsilon"] for line in lines_of(other)]
    assert spent == pytest.approx([0.0, *(epsilon([Release(1.0, 1.0, n)], DELTA) for n in (1, 2))])
    assert all(line["outside_epsilon"] == ["evaluation"] for line in lines_of(other))


def test_seeded_noise_is_the_same_again_and_has_no_epsilon(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = config_of(noise="seeded")
    found = [runs.simulate(config, out=tmp_path / name).summary["state_digest"] for name in "ab"]
    assert found[0] == found[1]
    assert {line["epsilon_why"] for line in lines_of(tmp_path / "a")} == {"seeded noise"}
    assert not list(tmp_path.rglob("privacy.key"))
    for line in lines_of(tmp_path / "a")[1:]:
        assert "train_loss" not in line
        assert set(line["weights"].values()) == {1}


@pytest.mark.slow
def test_workers_end_with_the_bytes_of_one_process(config_of: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = config_of(noise="seeded")
    alone = runs.simulate(config, out=tmp_path / "alone")
    workers = runs.simulate(replace(config, server=replace(config.server, workers=2)), out=tmp_path / "workers")
    assert workers.summary["state_digest"] == alone.summary["state_digest"]
    assert len(list((tmp_path / "workers").glob("clients/*/privacy-ledger.fedft"))) == 2
