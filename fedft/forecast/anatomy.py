"""What a base model is made of, as far as its memory and its operations depend on it: a plain value.

It is read off the modules of a model, loaded or on torch's "meta" device where weights take no memory
(`fedft.models.skeleton`). Linear layers are told apart by the last part of their names; where these are others than
the ones below, `known` is False, and what depends on them is a rough estimate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from torch import nn

from fedft.models.layer_numbers import number_of
from fedft.models.layout import linear_layers
from fedft.models.packed_linear import PackedLinear
from fedft.models.parameters import parameters_of
from fedft.models.quantized_base import packable

Role = Literal["attention_in", "attention_out", "feed_in", "feed_out", "other"]
STAGES: tuple[Role, ...] = ("attention_in", "attention_out", "feed_in", "feed_out")
"""In the order in which a layer computes them."""
ROLES: Mapping[str, Role] = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "self.query", "self.key", "self.value"), "attention_in"),
    **dict.fromkeys(("attn.c_attn", "qkv_proj"), "attention_in"),
    **dict.fromkeys(("o_proj", "attn.c_proj", "attention.output.dense"), "attention_out"),
    **dict.fromkeys(("gate_proj", "up_proj", "gate_up_proj", "mlp.c_fc", "intermediate.dense"), "feed_in"),
    **dict.fromkeys(("down_proj", "mlp.c_proj", "output.dense"), "feed_out"),
}
"""By endings of the names in Llama, Mistral, Qwen and their kin, GPT-2, BERT and RoBERTa; the longest ending counts."""
ACTIVATIONS: Mapping[str, int] = {"gelu_new": 4, "gelu": 1, "gelu_pytorch_tanh": 1, "silu": 1, "swish": 1, "relu": 1}
"""Vectors of the feed-forward width that an activation keeps for its gradient, beside the input of what follows;
`gelu_new` is made of several operations in transformers."""

MOUNTED = ".base_layer"
"""In names of layers that peft has put an adapter around."""


@dataclass(frozen=True)
class Part:
    """One linear layer of the body."""

    role: Role
    layer: int
    """Number of the model's layer that it is in, from 0; -1: in none."""
    out: int
    inputs: int

    @property
    def weights(self) -> int:
        """Numbers in the matrix."""
        return self.out * self.inputs


@dataclass(frozen=True)
class Anatomy:
    """A base model, as far as memory and operations depend on it; widths are numbers per token."""

    kind: str
    """transformers' `model_type`."""
    known: bool
    """Whether every linear layer has a role, and all layers have the same ones: formulas were measured on such."""
    layers: int
    hidden: int
    heads: int
    queries: int
    """Width of all heads' queries."""
    keys: int
    """Width of all heads' keys; smaller than `queries` where heads share them."""
    feed_forward: int
    gated: bool
    """Whether the feed-forward part multiplies two projections."""
    activation: str
    norms: int
    """Norms of the hidden width in a layer."""
    head_norms: bool
    """Whether queries and keys are normed, head by head."""
    centred: bool
    """LayerNorm, which keeps two numbers a token, in place of RMSNorm, which keeps one, in float32."""
    closing_norm: bool
    """Whether a norm stands between the last layer and the output, and one before the first layer's attention."""
    vocabulary: int
    """Width of the output layer; of a classification 0."""
    attention: str
    """transformers' name of how it is computed."""
    attention_dropout: float
    hidden_dropout: float
    parameters: int
    """Numbers in the whole base, tied ones once."""
    packed: int
    """Those of `parameters` that `[model] base_bits` packs."""
    largest: int
    """Numbers in the largest parameter."""
    outputs: int = 0
    """Width of what all linear layers of a layer give, on average."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    """The body's linear layers by name."""


def anatomy_of(base: Any, whole: Sequence[str] = ()) -> Anatomy:
    """The anatomy of a base model (`fedft.models.load.Base`); no weight is read.

    The same whether weights are packed by now or not, and whether LoRA is mounted. `whole`: `[model] modules_to_save`.
    """
    model, config = base.model, base.model.config.get_text_config()
    linear = _own(linear_layers(model))
    layer = _own(dict(model.named_modules()))
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    parts = {n: _part(n, s) for n, s in linear.items() if layer[n] is not output}
    inside = {n: p for n, p in parts.items() if p.layer >= 0}
    packs = {n.replace(MOUNTED, "") for names in packable(base, whole) for n in names}
    layers = 1 + max((p.layer for p in inside.values()), default=-1)
    first = {n: p for n, p in inside.items() if p.layer == 0}
    every = [(number_of(n), n, m) for n, m in model.named_modules() if "norm" in type(m).__name__.lower()]
    norms = [m for at, _, m in every if at == 0]
    hidden = int(getattr(config, "hidden_size", 0))
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    queries, keys = _widths(first, hidden)
    feed = [p for p in first.values() if p.role == "feed_in"]
    down = next((p.inputs for p in first.values() if p.role == "feed_out"), hidden)
    wide = [m for m in norms if m.weight.numel() == hidden]
    small = {n: s for n, s in linear.items() if isinstance(layer[n], PackedLinear)}
    shapes = {**_own({n: tuple(p.shape) for n, p in parameters_of(model).items()}), **small}
    packed = sum(map(prod, small.values()) if small else (prod(s) for n, s in linear.items() if n in packs))
    one_sided = not getattr(model.config, "is_encoder_decoder", False)
    return Anatomy(
        kind=str(config.model_type),
        known=bool(inside) and one_sided and _regular(inside, layers),
        layers=layers, hidden=hidden, heads=heads, queries=queries, keys=keys, feed_forward=down,
        gated=sum(p.out for p in feed) == 2 * down,
        activation=str(getattr(config, "hidden_act", None) or getattr(config, "activation_function", "gelu")),
        norms=len(wide), head_norms=any(m.weight.numel() < hidden for m in norms),
        centred=any(isinstance(m, nn.LayerNorm) for m in wide),
        closing_norm=any(at is None and "embed" not in n.lower() for at, n, _ in every),
        vocabulary=int(output.weight.shape[0]) if output is not None else 0,
        attention=str(getattr(config, "_attn_implementation", None) or "eager"),
        attention_dropout=_first(config, "attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"),
        hidden_dropout=_first(config, "hidden_dropout_prob", "resid_pdrop", "hidden_dropout"),
        parameters=sum(map(prod, shapes.values())), packed=packed, largest=max(map(prod, shapes.values()), default=0),
        outputs=sum(p.out for p in inside.values()) // max(1, layers), parts=parts,
    )  # fmt: skip


def _own(named: Mapping[str, Any]) -> dict[str, Any]:
    """What is the base's, under the names that it has where no adapter is mounted; of both the one inside."""
    return {n.replace(MOUNTED, ""): x for n, x in named.items() if ".lora_" not in n}


def _part(name: str, shape: tuple[int, int]) -> Part:
    known = [e for e in ROLES if f".{name}".endswith(f".{e}")]
    layer = number_of(name)
    role = ROLES[max(known, key=len)] if known and layer is not None else "other"
    return Part(role, -1 if layer is None else layer, *shape)


def _widths(first: Mapping[str, Part], hidden: int) -> tuple[int, int]:
    """(width of the queries, width of the keys) of a layer with these parts."""
    given = sum(p.out for p in first.values() if p.role == "attention_in")
    queries = next((p.inputs for p in first.values() if p.role == "attention_out"), hidden)
    return queries, max(0, given - queries) // 2


def _regular(inside: Mapping[str, Part], layers: int) -> bool:
    """Whether all layers have the same parts, each with one of the four roles."""
    of = [sorted((p.role, p.out, p.inputs) for p in inside.values() if p.layer == n) for n in range(layers)]
    return all(parts == of[0] for parts in of) and {role for role, _, _ in of[0]} == set(STAGES)


def _first(config: Any, *names: str) -> float:
    """The first of these rates that a model's config has; 0 where it has none."""
    return float(next((x for n in names if (x := getattr(config, n, None)) is not None), 0.0))
