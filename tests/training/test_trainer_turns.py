"""A turn by a Trainer of transformers or TRL: the same steps as ours where the loss is the same; nothing else moves."""

import dataclasses
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from small_models import factors, small
from unlike_rows import pairs, rows

from fedft import run_file, strategies
from fedft.adapters.lora import LoRA
from fedft.config import Local
from fedft.contract import Course, Turn
from fedft.data import batches
from fedft.data.batches import ClientRows
from fedft.data.micro_batches import MicroBatch
from fedft.errors import ConfigError
from fedft.models.handle import ModelHandle
from fedft.simulations import run as runs
from fedft.training import trainer_names
from fedft.training.first_order import FirstOrder
from fedft.training.preferences import DPO
from fedft.update import Plan

SAME = {"transformers": "likelihood", "trl_sft": "likelihood", "trl_dpo": "dpo"}


class Doubled(Course):
    """A term that doubles the gradients."""

    def __init__(self, live) -> None:
        self.live = live

    def step(self) -> None:
        for p in self.live.values():
            p.grad.mul_(2)


class Doubling:
    def begin(self, learning, turn) -> Course:
        return Doubled(learning.live)


def of_dpo(name: str) -> bool:
    return SAME[name] == "dpo"


def begun(dpo: bool) -> ModelHandle:
    s = small("llama")
    s.model.config.pad_token_id = 0
    handle = ModelHandle(s.model, s.layout, LoRA(), objective=DPO(0.2) if dpo else None)
    handle.write(factors(s.layout, 2))
    return handle


def trained(local: Local, dpo: bool = False, steps: int = 3, size: int | None = None, terms=(), handle=None):
    handle = handle or begun(dpo)
    items = pairs() if dpo else [r for r in rows(9) if any(x != -100 for x in r.labels)]
    collate = (lambda of: handle.objective.collate(of, 0)) if dpo else (lambda of: batches.collate(of, 0))
    data = ClientRows(items, 4, collate, micro_batch=None if size is None else MicroBatch(size))
    plan = Plan("r", 0, 0, steps=steps, learning_rate=local.learning_rate, rank=2)
    return FirstOrder(terms=terms)(handle, data, Turn(plan, {}, "", local, 1, 7)), handle


def apart(one, other) -> float:
    """The largest difference of two results, as a part of the largest number of them."""
    assert one.delta.keys() == other.delta.keys()
    most = max(float(x.abs().max()) for x in one.delta.values())
    return max(float((x - other.delta[n]).abs().max()) for n, x in one.delta.items()) / most


def told(name: str, **options) -> dict:
    pytest.importorskip("trl" if name.startswith("trl") else "transformers")
    return {"name": name, **({"beta": 0.2} if of_dpo(name) else {}), **options}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("terms", [(), (Doubling(),)], ids=["alone", "with a term"])
def test_its_steps_are_ours(name: str, terms) -> None:
    how = Local(optimizer="sgd", learning_rate=0.5, batch_size=4, schedule="linear", schedule_over="round")
    ours, _ = trained(how, of_dpo(name), terms=terms)
    its, _ = trained(dataclasses.replace(how, trainer=told(name)), of_dpo(name), terms=terms)
    assert apart(ours, its) < 1e-4
    assert its.metrics == pytest.approx(ours.metrics, rel=1e-4)


@pytest.mark.parametrize("name", ["transformers", "trl_sft"])
def test_pieces_are_the_step_of_the_whole_batch(name: str) -> None:
    how = Local(optimizer="sgd", learning_rate=0.5, batch_size=4, trainer=told(name))
    (whole, _), (pieces, _) = trained(how), trained(how, size=2)
    assert apart(whole, pieces) < 1e-4
    assert pieces.metrics["steps"] == 3
    assert pieces.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-4)


@pytest.mark.parametrize("name", SAME)
def test_nothing_of_it_stays_on_the_model_or_the_screen(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    handle = begun(of_dpo(name))
    held, config = dict(vars(handle.model)), handle.model.config.to_dict()
    modes = [m.training for m in handle.model.modules()]
    asking = {n: p.requires_grad for n, p in handle.model.named_parameters()}
    base = {n: p.clone() for n, p in handle.base().items()}
    drawn = random.getstate(), np.random.get_state()[1].tolist()
    trained(Local(batch_size=4, trainer=told(name)), of_dpo(name), handle=handle)
    assert capfd.readouterr().out == ""
    assert vars(handle.model).keys() == held.keys()
    assert handle.model.config.to_dict() == config
    assert [m.training for m in handle.model.modules()] == modes
    assert {n: p.requires_grad for n, p in handle.model.named_parameters()} == asking
    assert all(torch.equal(p, base[n]) for n, p in handle.base().items())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn


def test_it_works_where_the_model_is_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with several devices, of which a Trainer would take the first one, or all."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second, local = torch.device("cuda:1"), Local(trainer=told("transformers"))
    made = trainer_names.arguments_of(local, 1, 1, 0.1, 1, second, "unused")
    assert (made.device, chosen) == (second, [second])
    assert made.n_gpu <= 1


@pytest.mark.parametrize("name", SAME)
def test_a_base_whose_files_hold_packed_weights_is_trained_as_others_are(name: str) -> None:
    handle = begun(of_dpo(name))
    handle.model.is_quantized = True  # as transformers notes it when it loads such files
    its, _ = trained(Local(batch_size=4, trainer=told(name)), of_dpo(name), handle=handle)
    plain, _ = trained(Local(batch_size=4, trainer=told(name)), of_dpo(name))
    assert apart(its, plain) == 0
    assert handle.model.is_quantized


def test_what_it_is_told_counts() -> None:
    plain, _ = trained(Local(batch_size=4, trainer=told("transformers")))
    smooth, _ = trained(Local(batch_size=4, trainer=told("transformers", label_smoothing_factor=0.3)))
    other, _ = trained(Local(batch_size=4, trainer=told("transformers", optim="adafactor")))
    assert apart(plain, smooth) > 1e-3
    assert apart(plain, other) > 1e-3


def test_no_schedule_of_its_own_goes_above_the_learning_rate() -> None:
    """Which a site's policy bounds; the options of a schedule come with a server's job."""
    for least, fine in ((0.001, True), (1.0, False)):
        own = told("transformers", lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr": least})
        how = Local(batch_size=4, learning_rate=0.01, trainer=own)
        with (
            nullcontext() if fine else pytest.raises(ConfigError, match=r"takes steps of .* above learning_rate 0\.01")
        ):
            trained(how)


def test_a_loss_that_is_not_finite_is_said() -> None:
    handle = begun(False)
    with torch.no_grad():
        next(iter(handle.parameters().values())).fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="Trainer were not finite"):
        trained(Local(batch_size=4, trainer=told("transformers")), handle=handle)


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (["local.trainer=hf"], "trainer is 'hf', wanted one of transformers, trl_sft, trl_dpo"),
        (['local.trainer={name="transformers", output_dir="x"}'], "takes no 'output_dir' here; it takes adam_beta1"),
        (['local.trainer={name="transformers", learning_rate=1}'], r"is what \[local\] learning_rate says"),
        (['local.trainer={name="transformers", seed=1}'], r"is what \[server\] seed says"),
        (['local.trainer={name="transformers", lr_scheduler_type="wavy"}'], "wavy"),
        (["local.trainer=trl_dpo"], "objective = 'dpo'; found 'likelihood'"),
        (["local.trainer=transformers", "local.micro_batch=auto"], "wanted a number"),
        (["local.trainer=transformers", "strategy.name=mezo"], "mezo does not back-propagate"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_run(sets: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        strategies.of(run_file.load(None, sets))


def test_a_run_file_names_what_no_package_has(monkeypatch: pytest.MonkeyPatch) -> None:
    known = trainer_names.TRAINERS["trl_sft"]._replace(module="no_such_package")
    monkeypatch.setitem(trainer_names.TRAINERS, "trl_sft", known)
    with pytest.raises(ConfigError, match=r"pip install \"fedft\[trainers\]\""):
        strategies.of(run_file.load(None, ["local.trainer=trl_sft"]))


@pytest.mark.slow
def test_a_run_of_two_clients_repeats_itself(tmp_path) -> None:
    sets = [
        "server.rounds=2",
        "strategy.name=fedit",
        "local.steps=2",
        "local.trainer=transformers",
        "data.clients=2",
        "eval.max_rows=4",
    ]
    config = run_file.load(runs.QUICKSTART, sets)
    one, other = (runs.simulate(config, out=tmp_path / name) for name in "ab")
    assert one.lines[-1]["state_digest"] == other.lines[-1]["state_digest"]
