"""Small models of random weights, their layouts, and values to write into them."""

import copy
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import nn

from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.contract import Layout
from fedft.models import load
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.testing import ToyModel

SEED = 5
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def toy_model() -> nn.Module:
    return ToyModel()


def gpt2() -> nn.Module:
    """Conv1D layers: weights are stored [in, out]; input and output embeddings are tied."""
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama(tied: bool = True) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


@dataclass(frozen=True)
class Small:
    """A model of random weights, its layout, and a batch."""

    model: nn.Module
    layout: Layout
    batch: dict[str, torch.Tensor]

    def handle(self, space=None) -> ModelHandle:
        return ModelHandle(self.model, self.layout, space or LoRA())


def base_of(m: nn.Module, task: str = "causal-lm") -> load.Base:
    return load.Base(m, None, task, "random", "")


def small(name: str, dtype: torch.dtype = torch.float32) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        m = {"toy": toy_model, "gpt2": gpt2, "llama": llama, "bert": bert}[name]().to(dtype).eval()
    if name == "toy":
        shapes = {n: tuple(p.shape) for n, p in sorted(m.named_parameters())}
        layout = Layout(modules={"first": (6, 8), "second": (4, 6)}, parameters=shapes)
        x = torch.linspace(-1, 1, 40, dtype=dtype).reshape(5, 8)
        return Small(m, layout, {"x": x, "labels": torch.linspace(1, -1, 20, dtype=dtype).reshape(5, 4)})
    task = "sequence-classification" if name == "bert" else "causal-lm"
    with torch.no_grad():  # the usual 0.02 makes logits so flat that a lost perturbation would not show
        for p in m.parameters():
            p.mul_(4 if p.ndim == 2 else 1)
    labels = torch.tensor([0, 2]) if name == "bert" else TOKENS
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}
    return Small(m, layout_of(base_of(m, task), "all-linear"), batch)


MODELS = ("toy", "gpt2", "llama", "bert")
every_model = pytest.mark.parametrize("name", MODELS)
transformer = pytest.mark.parametrize("name", MODELS[1:])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(layout: Layout, rank: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Unit-scale factors and head changes large enough to be seen."""
    found = {n: 0.1 * normal(seed, *s) for n, s in layout.head.items()}
    for k, (m, (o, i)) in enumerate(layout.modules.items()):
        found[m + A_SUFFIX] = normal(seed + k, rank, i) / i**0.5
        found[m + B_SUFFIX] = normal(seed + k + 99, o, rank) / 4
    return found


def changes(layout: Layout, rank: int, seed: int = 1) -> dict[str, LowRank]:
    return {m: LowRank(f[0], f[1]) for m, f in pairs_of(factors(layout, rank, seed), layout).items()}


def pairs_of(values, layout: Layout) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {m: (values[m + A_SUFFIX], values[m + B_SUFFIX]) for m in layout.modules}


def logits(m: nn.Module, batch) -> torch.Tensor:
    m.eval()
    with torch.no_grad():
        return m(**batch).logits


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def shifted(original: nn.Module, values, layout: Layout) -> nn.Module:
    """A copy whose weights are moved by hand: by B A in the weight's own orientation, and heads by their change."""
    other = copy.deepcopy(original)
    with torch.no_grad():
        for m, (a, b) in pairs_of(values, layout).items():
            module = other.get_submodule(m)
            module.weight.add_((b @ a).T if is_conv1d(module) else b @ a)
        for n in layout.head:
            other.get_parameter(n).add_(values[n])
    return other


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).abs().max())
