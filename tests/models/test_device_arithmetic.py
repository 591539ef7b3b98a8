"""What is left to a device is set where it is wanted, put back behind a turn, and said."""

import os

import pytest
import torch

from fedft import run_file
from fedft.client import train
from fedft.config import LOCAL, Local
from fedft.errors import ConfigError
from fedft.models import device_arithmetic
from fedft.models.device_arithmetic import depends, in_one_order, prepare, rounding
from fedft.reports import run_header
from fedft.simulations import run as runs

SURE = Local(deterministic=True)


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.mark.parametrize("before", [(False, False), (True, True)], ids=["off", "warnings only"])
def test_one_order_is_set_inside_and_what_was_set_before_behind_it(before):
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    try:
        was = settings()
        with in_one_order(SURE):
            assert settings() == (True, False, False)
        assert settings() == was
        with pytest.raises(ZeroDivisionError), in_one_order(SURE):
            raise ZeroDivisionError
        assert settings() == was
        with in_one_order(Local()):
            assert settings() == was
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_one_order_is_a_line_that_says_so():
    said = "upsample_backward does not have a deterministic implementation. You can turn off determinism"
    with pytest.raises(ConfigError) as e, in_one_order(SURE):
        raise RuntimeError(said)
    assert str(e.value).startswith("[local] deterministic: upsample_backward does not have a deterministic")
    with pytest.raises(RuntimeError, match="anything else"), in_one_order(SURE):
        raise RuntimeError("anything else")


def test_only_a_cuda_device_changes_the_process(monkeypatch):
    before = torch.get_float32_matmul_precision()
    monkeypatch.delenv(device_arithmetic.WORKSPACE, raising=False)
    try:
        prepare("cpu", SURE)
        assert torch.get_float32_matmul_precision() == before
        assert device_arithmetic.WORKSPACE not in os.environ
        prepare("cuda:0", Local())
        assert torch.get_float32_matmul_precision() == "high"
        assert device_arithmetic.WORKSPACE not in os.environ
        prepare("cuda:0", SURE)
        assert os.environ[device_arithmetic.WORKSPACE] == ":4096:8"
    finally:
        torch.set_float32_matmul_precision(before)
        os.environ.pop(device_arithmetic.WORKSPACE, None)


def test_coarser_numbers_may_differ_by_more():
    assert rounding(torch.zeros(1)) == rounding(torch.zeros(1, dtype=torch.float64)) == 1e-4
    assert rounding(torch.zeros(1, dtype=torch.bfloat16)) == 2e-2


def test_what_bytes_depend_on_is_said_in_the_header():
    assert depends("cpu", Local()) == depends("cpu", SURE) == []
    assert depends("cuda:1", Local()) == ["cuda:1 (TF32, any order of sums)"]
    assert depends("cuda", Local(deterministic=True, compile=True)) == [
        "cuda (TF32, one order of sums)", "compiled layers",
    ]  # fmt: skip
    facts = {
        "model": "m", "parameters": 1, "trainable": 1, "ranks": [], "dtype": "float32", "device": "cpu",
        "adapter": "lora",
        "strategy": "fedit", "asked": 1, "clients": 1, "train_rows": 1, "held_out_rows": 1, "cut": 0, "left_out": 0,
        "max_length": 8, "bytes_up": 1, "bytes_down": 1, "steps": 1, "disk": 1,
    }  # fmt: skip
    told = run_header.lines({**facts, "depends": ["cuda:0 (TF32, any order of sums)", "4 clients a pass"]})
    assert "digests  depend on cuda:0 (TF32, any order of sums), 4 clients a pass" in told
    assert len(told) == len(run_header.lines({**facts, "depends": []})) + 1 == len(run_header.lines(facts)) + 1


def test_the_keys_are_a_sites_own_choice():
    assert {"deterministic", "compile"} <= set(LOCAL["local"])
    assert run_file.from_dict({}).local.deterministic is run_file.from_dict({}).local.compile is False


def test_a_run_on_a_cpu_has_the_same_bytes_with_and_without_and_is_deterministic_while_it_trains(
    tiny_base, tmp_path, monkeypatch
):
    seen, own = [], train.Client._rows
    monkeypatch.setattr(
        train.Client,
        "_rows",
        lambda self, local: seen.append(torch.are_deterministic_algorithms_enabled()) or own(self, local),
    )
    digests = []
    for on in ("false", "true"):
        config = run_file.load(
            None,
            [
                f"model.id={tiny_base}", "strategy.name=fedit", "server.rounds=1", "local.steps=2", "clients.rank=2",
                "local.batch_size=2", "data.max_length=32", "data.clients=2", "data.partition=iid", "eval.max_rows=2",
                f"local.deterministic={on}",
            ],
        )  # fmt: skip
        digests.append(runs.simulate(config, out=tmp_path / on).lines[-1]["state_digest"])
    assert digests[0] == digests[1]
    assert seen == [False, False, True, True]
    assert not torch.are_deterministic_algorithms_enabled()
