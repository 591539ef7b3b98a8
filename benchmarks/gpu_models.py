"""Parts of `gpu.py` that need a model: steps, memory, zeroth order, a merge, on Llamas of random weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import LowRank
from fedft.benchmarks.gpu_kernels import K, compiled
from fedft.benchmarks.gpu_machine import Facts, LeftOut, Machine
from fedft.config import Local, Model
from fedft.contract import Batch, Layout
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.models.parameters import parameters_of
from fedft.randomness.hadamard import Hadamard
from fedft.training import directional_derivatives
from fedft.training.first_order import differentiate
from fedft.training.optimizers import optimizer_of
from fedft.update import Shape

RANK = 16
SIZES: dict[str, dict[str, int]] = {
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8}


def llama(machine: Machine, size: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A Llama of random weights on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {**(TINY if machine.tiny else SIZES[size]), "num_key_value_heads": 8}
    config = LlamaConfig(**shape, vocab_size=128 if machine.tiny else 128_256, tie_word_embeddings=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with machine.device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def adapted(net: Any, bits: int | None = None) -> ModelHandle:
    """The model with adapters on all linear layers; frozen weights in `bits`."""
    base: Any = load.Base(net, None, "causal-lm", "made up", "")
    if bits is not None:
        if "base_bits" not in {f.name for f in fields(Model)}:
            raise LeftOut("needs [model] base_bits")
        from importlib import import_module

        packed = import_module("fedft.models.quantized_base").packed
        base = packed(base, bits, device=next(net.parameters()).device)
    handle = ModelHandle(base.model, layout.layout_of(base, "all-linear"), LoRA())
    handle.write(handle.kind.initial(handle.layout, Shape(RANK), 0))
    return handle


def tokens(machine: Machine, rows: int, length: int) -> Batch:
    """Rows of arbitrary tokens, all learned."""
    ids = (torch.arange(rows * length, device=machine.device) * 7919 % 127 + 1).view(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def a_step(handle: ModelHandle, batch: Batch, ours: bool) -> Callable[[], object]:
    """One optimiser step, ours or written by hand."""
    trained = [*handle.parameters().values()]
    optimizer = optimizer_of(trained, 1e-5, Local())

    def run() -> None:
        if ours:
            differentiate(handle, batch, trained)
        else:
            handle.training(True)
            net: Any = handle.model
            net(**batch, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def step(size: str, bits: int | None, machine: Machine, seconds: float) -> Facts:
    """Tokens a second of our step and of a loop by hand on the same model: at least 0.95 of it."""
    handle, batch = adapted(llama(machine, size), bits), tokens(machine, 4, 16 if machine.tiny else 512)
    hand, ours = (machine.seconds(a_step(handle, batch, mine), seconds / 2) for mine in (False, True))
    n = batch["input_ids"].numel()
    facts = {"tokens/s": n / ours, "by hand": n / hand, "share": hand / ours}
    return {"ok": machine.tiny or hand / ours >= 0.95, **facts}


def memory(machine: Machine, seconds: float) -> Facts:
    """The peak of a step against base + adapter + saved tensors + logits, as `fedft plan` is to count them."""
    handle = adapted(llama(machine, "1B", torch.float32))
    batch = tokens(machine, 2, 16 if machine.tiny else 512)
    run = a_step(handle, batch, ours=False)
    run()
    found, shape = machine.peak(run, handle.model.parameters()), TINY if machine.tiny else SIZES["1B"]
    hidden, inner, layers, heads = shape.values()
    kv = 8 * hidden // heads
    n, vocabulary = batch["input_ids"].numel(), 128 if machine.tiny else 128_256
    kept = 4 * hidden + 2 * kv + 3 * inner + heads + 2 + 2 * hidden + inner + 7 * RANK  # floats of a token in a layer
    saved = 4 * n * layers * kept + 4 * n * vocabulary
    trained = sum(p.numel() for p in handle.parameters().values())
    base = sum(p.numel() * p.element_size() for p in handle.base().values())
    wanted = base + 16 * trained + saved + 2 * 4 * n * vocabulary
    near = machine.tiny or abs(found / wanted - 1) < 0.1
    return {"ok": near, "peak GB": found / 1e9, "formula GB": wanted / 1e9, "ratio": found / wanted}


def zeroth_order(machine: Machine, seconds: float) -> Facts:
    """A step on all parameters in bfloat16: at most 1.1 of the memory of inference."""
    net = llama(machine, "8B")
    shapes = {n: tuple(p.shape) for n, p in parameters_of(net).items()}
    handle = ModelHandle(net, Layout(parameters=shapes), Full(along_directions=True))
    batch, z = tokens(machine, 1, 16 if machine.tiny else 512), Hadamard(7, K)

    def inference() -> None:
        directional_derivatives.loss(handle, batch)

    def ours() -> None:
        slope, _ = directional_derivatives.two_point(handle, batch, z, 3, 1e-3)
        directional_derivatives.step(handle, z, 3, -1e-6 * slope)

    with compiled(machine):
        ours()
        plain, mine = (machine.peak(run, net.parameters()) for run in (inference, ours))
        once, whole = machine.seconds(inference, seconds / 2), machine.seconds(ours, seconds / 2)
    facts = {"memory": mine / plain, "inference GB": plain / 1e9, "step of two passes": whole / (2 * once)}
    return {"ok": machine.tiny or mine <= 1.1 * plain, **facts}


def merge(machine: Machine, seconds: float) -> Facts:
    """FLoRA's merge of eight clients of rank 16 into all linear layers: below a second."""
    handle = adapted(llama(machine, "8B"))
    rank = 8 * RANK
    change = {
        m: LowRank(A=torch.randn(rank, i), B=1e-3 * torch.randn(o, rank)) for m, (o, i) in handle.layout.modules.items()
    }
    again = [0]

    def run() -> None:
        again[0] += 1
        handle.set_base_change(change, str(again[0]))

    found = machine.seconds(run, seconds)
    return {"ok": machine.tiny or found < 1.0, "merge s": found, "modules": len(change), "rank": rank}
