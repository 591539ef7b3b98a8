"""Whole runs on a small real model: what `fedft simulate` leaves behind, and that nothing of it depends on luck."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import warm_processes

from fedft import run_file
from fedft.cli import main
from fedft.client.train import Client
from fedft.errors import ClientFailed, ConfigError, DataError
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs

SETTINGS = {
    "fedit": ["clients.rank=4"],
    "flora": ["clients.rank=[2, 4, 8]"],
    "ffa_lora": ["clients.rank=4"],
    "fedkseed": ["strategy.K=256", "local.learning_rate=1e-3", "local.steps=10"],
}
DONE = "nothing is left to do: the run has all its 2 rounds; a larger server.rounds goes on, as 4"
SUMMARY = {
    "strategy", "rounds", "clients", "seed", "initial", "final", "bytes_up", "bytes_down", "seconds", "refused",
    "state_digest",
}  # fmt: skip


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Path:
    """A Llama with two layers of 64, trained for two seconds."""
    return tiny_base


@pytest.fixture(scope="session")
def overrides(base: Path) -> Callable[..., list[str]]:
    def of(strategy: str, *more: str) -> list[str]:
        own = SETTINGS.get(strategy, ())
        small = ["local.batch_size=4", "data.max_length=64", "data.clients=3", "eval.max_rows=8"]
        tables = ["local.steps=6", "server.rounds=3", *small, *own]
        return [f"model.id='{base}'", f"strategy.name={strategy}", *tables, *more]

    return of


@pytest.fixture(scope="session")
def finished(overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, runs.Run]:
    """One finished run of every strategy."""
    root = tmp_path_factory.mktemp("runs")
    return {s: runs.simulate(run_file.load(runs.QUICKSTART, overrides(s)), out=root / s) for s in SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_learns_and_leaves_what_others_read(finished: dict[str, runs.Run], name: str) -> None:
    run = finished[name]
    s = json.loads((run.folder / "summary.json").read_text())
    assert s.keys() >= SUMMARY
    assert s["final"]["loss"] < s["initial"]["loss"]
    assert (s["refused"], s["rounds"], s["clients"]) == (0, 3, 3)
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["version"] for line in lines] == [0, 1, 2, 3]
    assert sum(line["bytes_up"] for line in lines) == s["bytes_up"]
    assert list((run.folder / "events").glob("*tfevents*"))
    assert run_file.load(run.folder / "config.toml").strategy.name == name


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_run_twice_gives_the_same_bytes(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    """Of every state: another run's first two rounds, and not with another seed."""

    def states(out: str, *more: str) -> list[str]:
        run = runs.simulate(run_file.load(runs.QUICKSTART, overrides(name, *more)), out=tmp_path / out)
        return [line["state_digest"] for line in run.lines]

    first = [line["state_digest"] for line in finished[name].lines]
    assert states("again", "server.rounds=2") == first[:3]
    assert states("other", "server.rounds=1", "server.seed=1")[1] not in first


@pytest.mark.parametrize("name", ["flora", "fedkseed"])
def test_a_run_interrupted_between_any_two_updates_ends_with_the_same_bytes(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    c, seen = run_file.load(runs.QUICKSTART, overrides(name)), []

    def stop(kind: str, info: Any) -> None:
        seen.append(kind)
        if seen.count("admitted") == 5 and kind == "admitted":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.simulate(c, out=tmp_path, observe=stop)
    resumed = runs.simulate(c, out=tmp_path, resume=True)
    assert resumed.summary["state_digest"] == finished[name].summary["state_digest"]
    assert resumed.summary["final"] == finished[name].summary["final"]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_header_knows_before_round_1_what_a_round_sends(finished: dict[str, runs.Run], name: str) -> None:
    said, line = finished[name].summary["header"], finished[name].lines[2]
    near = {"rel": 0.06} if name != "fedkseed" else {"rel": 0.3}  # of which headers are a half
    assert said["bytes_up"] == pytest.approx(line["bytes_up"], **near)
    assert said["bytes_down"] == pytest.approx(line["bytes_down"], **near)
    place, _ = workplace.reopen(finished[name].folder)
    assert said["trainable"] == sum(p.numel() for p in place.handle.parameters().values())
    assert said["parameters"] == sum(p.numel() for p in place.handle.base().values())
    assert said["train_rows"] == sum(len(c.train_rows) for c in place.clients.values())
    assert (said["clients"], said["asked"], said["held_out_rows"] > 0) == (3, 3, True)


def test_a_client_that_fails_ends_the_run_with_its_reason_and_the_run_can_go_on(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first time it fails, with what raised as the cause; a user's mistake stays one; resumed, the same bytes."""
    c, real, calls = run_file.load(runs.QUICKSTART, overrides("fedit")), Client.train, []

    def broken(self: Client, turn: Any) -> Any:
        calls.append(self.name)
        if turn.plan.round == 1 and self.name == "email":
            raise cause
        return real(self, turn)

    monkeypatch.setattr(Client, "train", broken)
    cause: Exception = IndexError("index out of range in self")
    with pytest.raises(ClientFailed, match="round 1: client 'email' failed: IndexError: index out of range") as e:
        runs.simulate(c, out=tmp_path)
    assert e.value.__cause__ is cause
    assert e.value.exit_code == 1
    assert calls == ["asyncio", "email", "logging", "asyncio", "email"]
    cause = DataError("row 7 cannot be learned")
    with pytest.raises(DataError, match="row 7"):
        runs.simulate(c, out=tmp_path, resume=True)
    assert calls[5:] == ["email"]
    monkeypatch.undo()
    assert (
        runs.simulate(c, out=tmp_path, resume=True).summary["state_digest"] == finished["fedit"].summary["state_digest"]
    )


def test_a_learning_rate_that_is_too_high_is_named(
    overrides: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On the command line: one line, exit code 1, no traceback."""
    wild = overrides("fedit", "local.optimizer='sgd'", "local.learning_rate=1e30", "local.max_grad_norm=1e30")
    command = ["fedft", "simulate", *(x for o in wild for x in ("--set", o)), "--out", str(tmp_path / "run"), "--json"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as e:
        main.main()
    assert e.value.code == 1
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("WARNING")]
    assert len(said) == 1
    assert said[0].startswith("fedft: round 0: client 'asyncio' failed: ")
    assert said[0].endswith("the learning rate is probably too high: [local] learning_rate = 1e+30")


def test_ffa_lora_uploads_the_share_of_the_factor_that_learns(finished: dict[str, runs.Run]) -> None:
    """d_out / (d_in + d_out) of LoRA's numbers, over all modules, within the messages' headers."""
    place, _ = workplace.reopen(finished["ffa_lora"].folder)
    b, both = (sum(f(o, i) for o, i in place.layout.modules.values()) for f in (lambda o, i: o, lambda o, i: o + i))
    up = {n: finished[n].lines[1]["bytes"]["asyncio"]["up"] for n in ("fedit", "ffa_lora")}
    assert up["ffa_lora"] / up["fedit"] == pytest.approx(b / both, rel=0.02)


def test_fedkseed_sends_kilobytes_whatever_the_size_of_the_model(finished: dict[str, runs.Run]) -> None:
    """256 scalars down, at most 10 pairs of 6 bytes up, and headers of less than 200 bytes."""
    line = finished["fedkseed"].lines[2]
    for client, sent in line["bytes"].items():
        assert sent["up"] < 10 * 6 + 200
        assert sent["down"] + line["evaluation_bytes"]["down"][client] < 4 * 256 + 400


@pytest.mark.slow
def test_plain_peft_in_another_process_gives_the_runs_loss(finished: dict[str, runs.Run], tmp_path: Path) -> None:
    of = [finished[name] for name in ("flora", "fedit", "ffa_lora")]
    place, _ = workplace.reopen(of[0].folder)
    rows = [[e.input_ids, e.labels] for e in place.clients["asyncio"].test_rows[:8]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    code = """
import json, sys, torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM
for folder in sys.argv[2:]:
    base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)
    model = PeftModel.from_pretrained(base, folder).eval()
    total = count = 0
    for ids, labels in json.load(open(sys.argv[1])):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        wanted = torch.tensor(labels[1:])
        total += torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum").item()
        count += (wanted != -100).sum().item()
    print(total / count)
"""
    args = [sys.executable, "-c", code, str(tmp_path / "rows.json"), *(str(run.model) for run in of)]
    said = subprocess.run(
        args, capture_output=True, text=True, timeout=120, check=True, env=os.environ | {"PYTHONPATH": ""}
    )
    reported = [run.lines[-1]["evaluation"]["asyncio"]["loss"] for run in of]
    assert [float(line) for line in said.stdout.split()] == pytest.approx(reported, abs=1e-5)


@pytest.mark.parametrize("name", ["flora", "fedkseed"])
def test_a_merged_export_is_a_plain_model_with_the_runs_loss(
    finished: dict[str, runs.Run], name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = finished[name]
    assert finished_run.export_run(run.folder, tmp_path / "merged", merged=True) == "merged model"
    place, _ = workplace.reopen(run.folder)
    batch = _batch_of(place, "asyncio")
    with torch.no_grad():
        ours = place.handle.forward({k: v for k, v in batch.items() if k != "labels"}).logits
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").vocab_size == place.base.tokenizer.vocab_size


@pytest.mark.parametrize("name", ["fedkseed", "fedit"])
def test_a_merged_export_of_half_precision_is_the_model_that_was_evaluated(
    overrides: Callable[..., list[str]], tmp_path: Path, name: str
) -> None:
    """Of FedKSeed bit for bit, and as large as the base; of adapters in float32, but for what bfloat16 rounds."""
    from transformers import AutoModelForCausalLM

    few = ("model.dtype=bfloat16", "server.rounds=1", "eval.every=9", "local.steps=2")
    run = runs.simulate(run_file.load(runs.QUICKSTART, overrides(name, *few)), out=tmp_path / "run")
    finished_run.export_run(run.folder, tmp_path / "merged", merged=True)
    place, _ = workplace.reopen(run.folder)
    batch = {k: v for k, v in _batch_of(place, "asyncio").items() if k != "labels"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto").eval()
    with torch.no_grad():
        ours, theirs = place.handle.forward(batch).logits, model(**batch).logits
    assert model.dtype == (torch.bfloat16 if name == "fedkseed" else torch.float32)
    assert torch.equal(ours, theirs) or name != "fedkseed"
    assert torch.allclose(ours.float(), theirs.float(), atol=0.1)


def test_evaluating_a_run_again_gives_the_numbers_it_reported(finished: dict[str, runs.Run]) -> None:
    run = finished["flora"]
    _, mean = finished_run.evaluate_run(run.folder, rouge=True)
    assert mean["loss"] == pytest.approx(run.summary["final"]["loss"], abs=1e-6)
    assert 0 <= mean["rouge_l"] <= 1


def test_a_finished_run_says_so_and_a_longer_one_goes_on_from_it(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    c = run_file.load(runs.QUICKSTART, overrides("fedit", "server.rounds=2"))
    runs.simulate(c, out=tmp_path)
    assert not any("nothing is left" in m for m in caplog.messages)
    again = runs.simulate(c, out=tmp_path, resume=True)
    assert (again.summary["rounds"], caplog.messages.count(DONE)) == (2, 1)
    bound = replace(c.server, rounds=9, budget="bytes=1")
    runs.simulate(replace(c, server=bound), out=tmp_path, resume=True)
    assert any("ended at its budget, after 2 rounds; a larger server.budget goes on" in m for m in caplog.messages)
    longer = runs.simulate(replace(c, server=replace(c.server, rounds=3)), out=tmp_path, resume=True)
    assert longer.summary["state_digest"] == finished["fedit"].summary["state_digest"]


def test_a_run_is_not_resumed_under_another_config_nor_overwritten(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]]
) -> None:
    folder = finished["fedit"].folder
    changed = run_file.load(runs.QUICKSTART, overrides("fedit", "local.steps=7"))
    with pytest.raises(ConfigError, match=r"changed in local\.steps"):
        runs.simulate(changed, out=folder, resume=True)
    with pytest.raises(ConfigError, match="holds a run already"):
        runs.simulate(changed, out=folder)


def test_int8_uploads_are_four_times_smaller_and_still_learn(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    small = runs.simulate(run_file.load(runs.QUICKSTART, overrides("fedit", "codec.up=int8")), out=tmp_path)
    up = [r.lines[1]["bytes"]["asyncio"]["up"] for r in (finished["fedit"], small)]
    assert 3.3 < up[0] / up[1] < 4
    assert small.summary["final"]["loss"] == pytest.approx(finished["fedit"].summary["final"]["loss"], abs=0.02)


def test_clients_that_add_up_downloads_need_them_exact(overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wanted 'fp32', got 'bf16'"):
        runs.simulate(run_file.load(runs.QUICKSTART, overrides("flora", "codec.down=bf16")), out=tmp_path)


def test_a_run_that_makes_no_sense_leaves_no_folder(overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedit needs one rank for all clients"):
        runs.simulate(run_file.load(runs.QUICKSTART, overrides("fedit", "clients.rank=[2, 4]")), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_file_that_asks_for_more_clients_than_there_are_is_refused(
    overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="rows of 4 clients only"):
        runs.simulate(run_file.load(runs.QUICKSTART, overrides("fedit", "data.clients=40")), out=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["gen-00000001", "u-"])
def test_sigkill_in_the_middle_of_a_round_and_resume_give_the_same_digest(
    finished: dict[str, runs.Run], overrides: Callable[..., list[str]], tmp_path: Path, after: str
) -> None:
    sets = [x for o in overrides("flora") for x in ("--set", o)]
    words = ["-m", "fedft", "simulate", *sets, "--out", str(tmp_path / "run"), "--json"]
    with open(tmp_path / "said", "wb") as said:
        process = warm_processes.start(words, said, said)
    until = time.monotonic() + 120
    while not any(p.name.startswith(after) for p in (tmp_path / "run").rglob("*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    done = warm_processes.run([*words, "--resume"], timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state_digest"] == finished["flora"].summary["state_digest"]


@pytest.fixture(scope="session")
def classifier(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder from seed 0 with the tiny base's tokenizer: it learns which package a docstring is from."""
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    small = BertConfig(vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    BertModel(small).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_a_classifier_learns_and_plain_peft_loads_its_head_too(classifier: Path, tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    labels = ["asyncio", "email", "logging", "unittest"]
    sets = [
        f"model.id='{classifier}'",
        "model.task=sequence-classification",
        f"model.labels={labels}",
        "model.targets=['query', 'value']",
        "data.text='{response}'",
        "data.label=client",
        "data.partition=iid",
        "data.clients=3",
        "data.max_length=32",
        f"strategy.name={name}",
        "clients.rank=4",
        "server.rounds=2",
        "local.steps=20",
    ]
    sets += ["strategy.space=lora", "strategy.K=64", "local.learning_rate=1e-2"] if name == "fedkseed" else []
    run = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "run")
    assert run.summary["final"]["loss"] < run.summary["initial"]["loss"]
    place, _ = workplace.reopen(run.folder)
    assert place.layout.head.keys() == {"classifier.weight", "classifier.bias"}
    batch = {k: v for k, v in _batch_of(place, "client-0").items() if k != "labels"}
    fresh = AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=4)
    theirs = PeftModel.from_pretrained(fresh, str(run.model)).eval()
    with torch.no_grad():
        assert torch.allclose(place.handle.forward(batch).logits, theirs(**batch).logits, atol=1e-5)


def _batch_of(place: workplace.Workplace, client: str) -> dict[str, torch.Tensor]:
    from fedft.data.batches import collate

    return collate(place.clients[client].test_rows[:4], place.base.pad_id)
