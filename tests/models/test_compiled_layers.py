"""Compiled layers give the loss that layers give, and what cannot be compiled is refused before training."""

from functools import partialmethod

import pytest
import torch
from client_turns import batch_of, handle_on, llama, start, turn_of
from torch import nn
from torch._dynamo import config as limits
from torch._dynamo.testing import CompileCounter

from fedft import run_file, strategies
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.models import compiled_layers, resident
from fedft.testing import ToyModel
from fedft.training.batched_clients import unfit


def test_a_machine_without_a_compiler_is_told_in_a_line(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ConfigError) as e:
        compiled_layers.switch_on(llama(), "made up")
    assert str(e.value).startswith("[local] compile: no C++ compiler 'g++' on this machine")
    assert "\n" not in str(e.value)
    monkeypatch.setattr(compiled_layers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="cuda needs triton"):
        compiled_layers.check_compiler("cuda")


def test_a_model_that_does_not_say_its_layers_is_refused(monkeypatch):
    monkeypatch.setattr(compiled_layers, "check_compiler", lambda device: None)
    with pytest.raises(ConfigError, match="a ToyModel, does not say which its layers are"):
        compiled_layers.switch_on(ToyModel(), "made up")


def test_every_layer_is_compiled_by_itself_and_nothing_else(monkeypatch):
    monkeypatch.setattr(compiled_layers, "check_compiler", lambda device: None)
    net = llama()
    compiled_layers.switch_on(net, "made up")
    compiled = [n for n, m in net.named_modules() if m._compiled_call_impl is not None]
    assert compiled == ["model.layers.0", "model.layers.1"]


def test_steps_that_move_weights_under_a_pass_are_refused_before_the_model_is_loaded():
    config = run_file.from_dict({"model": {"id": "nowhere"}, "local": {"compile": True}, "strategy": {"name": "mezo"}})
    with pytest.raises(ConfigError, match="local steps of mezo do more to a model than to train it"):
        resident.load(config, strategies.of(config))


def test_passes_are_not_shared():
    recipe = strategies.of(run_file.from_dict({"strategy": {"name": "fedit"}}))
    assert "[local] compile" in unfit(recipe, handle_on(llama()), Local(compile=True))
    assert not unfit(recipe, handle_on(llama()), Local())


def test_torch_may_compile_as_often_as_there_are_ranks(monkeypatch):
    monkeypatch.setattr(compiled_layers, "check_compiler", lambda device: None)
    with limits.patch(recompile_limit=8):
        compiled_layers.switch_on(llama(), "made up")
        assert limits.recompile_limit == 8
        compiled_layers.switch_on(llama(), "made up", ranks=5)
        assert limits.recompile_limit == 20


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_every_rank_that_is_foreseen_is_compiled_in_steps_and_evaluations(monkeypatch):
    """Traced only: where torch gives up it counts no more."""
    programs = CompileCounter()
    monkeypatch.setattr(compiled_layers, "check_compiler", lambda device: None)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=programs))
    handle, counted = handle_on(llama()), []
    with limits.patch(recompile_limit=2):
        compiled_layers.switch_on(handle.model, "made up", ranks=2)
        for rank in (2, 3):
            start(handle, turn_of(1, rank=rank))
            for length in (9, 12):
                handle.loss(batch_of(3, 3, length)).backward()
            with torch.no_grad():
                handle.loss(batch_of(3, 3, 9))
            counted.append(programs.frame_count)
    first, second = counted
    assert 1 < first <= compiled_layers.PROGRAMS
    assert second == 2 * first


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
def test_the_loss_and_its_gradients_are_those_of_layers_that_are_not_compiled():
    """One program for all layers, lengths and ranks are free in it."""
    plain, compiled = handle_on(llama()), handle_on(llama())
    compiled_layers.switch_on(compiled.model, "made up")
    for rank, length in ((2, 9), (2, 12)):
        found = []
        for handle in (plain, compiled):
            start(handle, turn_of(1, rank=rank))
            loss = handle.loss(batch_of(3, 3, length))
            loss.backward()
            found.append((loss.detach(), {n: p.grad.clone() for n, p in handle.parameters().items()}))
            handle.model.zero_grad()
        (want, gradients), (got, others) = found
        assert torch.allclose(got, want, rtol=1e-5)
        assert all(torch.allclose(others[n], g, rtol=1e-3, atol=1e-6) for n, g in gradients.items())
