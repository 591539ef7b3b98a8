"""Small models whose experts lie in one parameter, in either orientation, and values for adapters on them."""

import copy
import warnings

import pytest
import torch
import transformers
from small_models import base_of, factors, pairs_of

TINY = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
TINY |= {"num_attention_heads": 2, "num_key_value_heads": 1}
TINY |= {"num_experts_per_tok": 2, "num_local_experts": 3, "num_experts": 3, "moe_intermediate_size": 8, "head_dim": 8}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
BATCH = {"input_ids": TOKENS, "labels": TOKENS}
KINDS = {
    "mixtral": transformers.MixtralConfig,
    "qwen3_moe": transformers.Qwen3MoeConfig,
    "gpt_oss": transformers.GptOssConfig,  # the one that keeps [experts, in, out]
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def drawn(kind, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        extra = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}} if kind == "gpt_oss" else {}
        config = KINDS[kind](**TINY, **extra)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    with torch.no_grad():  # the usual 0.02 makes logits so flat that a lost change would not show
        for p in model.parameters():
            p.mul_(4 if p.ndim > 1 else 1)
    return base_of(model)


def unlike(layout, ranks=(1, 2, 3)):
    """Factors of unlike ranks, one rank after the other."""
    values = [factors(layout, r) for r in ranks]
    return {n: values[k // 2 % len(ranks)][n] for k, n in enumerate(values[0])}


def logits(model):
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


def moved(model, values, layout):
    """A copy whose weights are moved by hand, expert by expert."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for m, (a, b) in pairs_of(values, layout).items():
            stack, _, index = m.rpartition(".")
            if m in layout.experts:
                of, d = other.get_parameter(stack), b @ a
                of[int(index)] += d if of.shape[1:] == d.shape and "GptOss" not in type(other).__name__ else d.T
            else:
                other.get_submodule(m).weight.add_(b @ a)
    return other


def experts_in(model):
    return [p for n, p in model.named_parameters() if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]
