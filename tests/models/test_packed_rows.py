"""Packed rows have the loss and the gradients of padded ones; a model that mixes them up is refused before the run."""

import json
import logging
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import transformers
from small_models import factors
from torch.nn import functional

import fedft
from fedft import run_file
from fedft.adapters.lora import LoRA
from fedft.data import batches, packing
from fedft.data.examples import IGNORED, Example
from fedft.errors import DataError
from fedft.models import load, packed_rows
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.training.objectives import next_tokens

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 0}
EXACT = {
    "llama": transformers.LlamaConfig(**SIZES),
    "gpt2": transformers.GPT2Config(**GPT, eos_token_id=0, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0),
    "qwen2": transformers.Qwen2Config(**SIZES),
    "gemma": transformers.GemmaConfig(**SIZES, head_dim=8),
    "gemma2": transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=4),
}
OTHERS = {
    "mamba": transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4),
    "opt": transformers.OPTConfig(
        vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16,
        max_position_embeddings=64, do_layer_norm_before=True,
    ),
}  # fmt: skip
ROWS = [Example(list(range(3, 3 + n)), [IGNORED] * k + list(range(3 + k, 3 + n)), k)
        for n, k in ((9, 2), (4, 0), (13, 5), (1, 0), (7, 6), (5, 1))]  # fmt: skip


def handle_on(config, dtype=torch.float32, targets="all-linear"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():  # the usual 0.02 makes logits so flat that what is mixed up would hardly show
        for p in model.parameters():
            p.mul_(4 if p.ndim == 2 else 1)
    return ModelHandle(model, layout_of(base_of(model), targets), LoRA())


def base_of(model):
    return load.Base(model, None, "causal-lm", "random", "", ids=40)


def loss_and_gradients(handle, batch):
    """The mean cross entropy of learned tokens in float64, and the gradient of every factor."""
    handle.training(True)
    logits = handle.forward({k: x for k, x in batch.items() if k != "labels"}).logits.double()
    wanted = next_tokens(batch["labels"])
    loss = functional.cross_entropy(logits[wanted != IGNORED], wanted[wanted != IGNORED])
    grads = torch.autograd.grad(loss, list(handle.parameters().values()))
    return loss.detach(), dict(zip(handle.parameters(), grads, strict=True))


@pytest.mark.parametrize("name", EXACT)
def test_loss_and_gradients_are_those_of_the_padded_batch(name):
    # gemma2's own code is not finite in float64 where a row is padded by more than its window
    dtype, most = (torch.float32, 1e-5) if name == "gemma2" else (torch.float64, 1e-10)
    handle = handle_on(EXACT[name], dtype)
    handle.write(factors(handle.layout, 2))
    for p in handle.parameters().values():
        p.data = p.data.to(dtype)
    padded, packed = batches.collate(ROWS, 0), packing.collate(ROWS, 0, 16)
    assert packed["labels"].numel() < padded["labels"].numel()
    (loss, grads), (other, others) = (loss_and_gradients(handle, b) for b in (packed, padded))
    assert abs(float(loss - other)) < most * float(other)
    for n, g in grads.items():
        assert float(others[n].norm()) > 0
        assert float((g - others[n]).norm()) < most * float(others[n].norm())


@pytest.mark.parametrize("name", EXACT)
def test_the_run_s_own_loss_is_the_padded_one_too(name):
    handle = handle_on(EXACT[name])
    handle.write(factors(handle.layout, 2))
    losses = [float(handle.loss(b).detach()) for b in (packing.collate(ROWS, 0, 16), batches.collate(ROWS, 0))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *OTHERS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_rows_up_is_refused_by_name(name, dtype):
    handle = handle_on((EXACT | OTHERS)[name], dtype)
    base = base_of(handle.model)
    before = {n: p.clone() for n, p in handle.base().items()}
    if name in EXACT:
        for length in (2, 9, 1024):
            packed_rows.check_exact(handle, base, length)
    else:
        with pytest.raises(DataError, match=rf"\[local\] packing: random, a {name} model, .*packing = false would do"):
            packed_rows.check_exact(handle, base, 64)
    assert all(torch.equal(p, before[n]) for n, p in handle.base().items())


def test_a_model_that_fails_on_positions_is_refused_in_one_line():
    handle = handle_on(EXACT["llama"])
    own = handle.model.forward
    handle.model.forward = lambda input_ids, attention_mask, use_cache: own(input_ids, attention_mask)
    with pytest.raises(DataError, match=r"TypeError: .*position_ids") as e:
        packed_rows.check_exact(handle, base_of(handle.model), 64)
    assert "\n" not in str(e.value)


MIX = {"lfm2", "opt", "bloom", "falcon", "mpt", "gpt_oss", "mamba", "mamba2", "falcon_h1"}
"""Architectures whose code makes its masks without positions, or has a state; `DATA.md` names them."""


@pytest.mark.slow
def test_which_architectures_keep_packed_rows_apart():
    """Of the matrix of architectures: a change of transformers that adds one, or loses one, is seen here."""
    spec = spec_from_file_location("architectures", Path(__file__).parents[1] / "cases" / "architectures.py")
    matrix = module_from_spec(spec)
    spec.loader.exec_module(matrix)
    of_text = {name: (kind, said) for name, (kind, said, text, *_) in matrix.ARCHS.items() if text == "ok"}
    refused = set()
    for name, (kind, said) in of_text.items():
        handle = handle_on(getattr(transformers, kind)(**said), targets=[])
        try:
            packed_rows.check_exact(handle, replace(base_of(handle.model), ids=matrix.V), 96)
        except DataError:
            refused.add(name)
    assert len(of_text) > 30
    assert refused == MIX


# -- runs


def simulated(tmp_path, model, name, **local):
    rows = [{"client": "ab"[n % 2], "prompt": f"{n} is", "response": f" {n}" * (1 + n % 6)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    together = local.pop("together", 1)
    tables = {
        "model": {"id": str(model)}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 48},
        "strategy": {"name": "fedit"}, "clients": {"rank": 2}, "server": {"rounds": 2, "together": together},
        "local": {"steps": 3, "batch_size": 8, "learning_rate": 1e-3, **local},
    }  # fmt: skip
    return fedft.simulate(run_file.from_dict(tables), out=tmp_path / name)


def test_a_packed_run_is_the_padded_one_but_for_rounding(tmp_path, tiny_base, caplog):
    padded, packed = (simulated(tmp_path, tiny_base, f"{on}", packing=on) for on in (False, True))
    for a, b in zip(padded.lines, packed.lines, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)
    assert padded.lines[-1]["state_digest"] != packed.lines[-1]["state_digest"], "nothing was packed"
    again = simulated(tmp_path, tiny_base, "again", packing=True)
    assert again.lines[-1]["state_digest"] == packed.lines[-1]["state_digest"]
    with caplog.at_level(logging.WARNING):
        alone = simulated(tmp_path, tiny_base, "together", packing=True, together=2)
    assert alone.lines[-1]["state_digest"] == packed.lines[-1]["state_digest"]
    assert "together = 2: clients train one at a time: [local] packing" in caplog.text


def test_a_run_of_a_model_that_mixes_rows_up_ends_before_training(tmp_path, tiny_base):
    folder = tmp_path / "mamba"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(DataError, match="a mamba model, gives packed rows other numbers"):
        simulated(tmp_path, folder, "run", packing=True)
    assert not list((tmp_path / "run").rglob("gen-*"))
