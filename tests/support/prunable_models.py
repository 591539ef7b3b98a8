"""A small model of random weights of each type that pruning knows, and random groups to prune from it."""

from typing import Any

import pytest
import torch
import transformers
from small_models import TOKENS, base_of
from torch import nn

from fedft.models.layout import layout_of
from fedft.pruning.groups import FORMS, Groups
from fedft.pruning.kept import Kept

_COMMON = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8}
_DECODER = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 4, "pad_token_id": 0}
_ENCODER = {**_COMMON, "intermediate_size": 48, "max_position_embeddings": 32, "num_labels": 3, "pad_token_id": 0,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
_GPT2 = {"vocab_size": 20, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "pad_token_id": 0,
         "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
_MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_DECODER, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "head_dim": 8}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "head_dim": 8}),
    "gemma3_text": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, "head_dim": 8}),
    "bert": ("BertForSequenceClassification", "BertConfig", _ENCODER),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _ENCODER),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**_GPT2, "bos_token_id": 0, "eos_token_id": 0}),
}
every_prunable = pytest.mark.parametrize("name", FORMS)
BATCH = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}


def prunable(name: str, **other: Any) -> nn.Module:
    """A model of two layers; its weights are large enough for what is lost to show. `other`: sizes."""
    model, config, sizes = _MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **other}))
        with torch.no_grad():
            for n, p in made.named_parameters():
                p.mul_(4 if p.ndim == 2 else 1)
                if n.endswith("bias"):
                    p.normal_()
    return made.eval()


def layout(model: nn.Module):
    task = "causal-lm" if hasattr(model, "lm_head") else "sequence-classification"
    return layout_of(base_of(model, task), "all-linear")


def some(groups: Groups, seed: int) -> Kept:
    """A random part of all groups: of each structure at least one is kept and one pruned."""
    rng = torch.Generator().manual_seed(seed)
    bits = torch.rand(groups.size, generator=rng) < 0.2 + 0.6 * torch.rand(1, generator=rng)
    for s, place in groups.each():
        keep, lose = torch.randperm(s.size, generator=rng)[:2].tolist()
        bits[place.start + keep], bits[place.start + lose] = True, False
    return Kept(groups, bits)
