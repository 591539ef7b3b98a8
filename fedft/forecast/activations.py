"""Bytes that a training pass keeps until its gradients: of the layers, and of the logits.

A layer keeps, per token, with h the hidden width, q and kv those of queries and keys, f the feed-forward width, H heads

    norms         h + 1 each (LayerNorm h + 2); h more where their weights learn
    attention     q, k, v as they are multiplied (k and v as wide as q behind a mask), the result (q), H sums, a mask T;
                  "eager" or with dropout: 3 q and H T shares, with dropout 2 H T more
    feed-forward  f for each operation of the activation, and 2 f more where two projections are multiplied
    inputs        of adapted or trained layers: h, q, h, f in the four stages, each kept once; of each adapted layer
                  by itself where it is cast (half precision, autocast) or dropped from (twice)
    ranks         of adapters, one number each

Nothing is kept below the lowest stage in which something learns: gradients end there. With checkpointing a layer keeps
its input, and one layer at a time the rest. Counted with `torch.autograd.graph.saved_tensors_hooks` under torch 2.13
and transformers 5.23, for Llama, Qwen2, Qwen3, GPT-2 and BERT (`tests/forecast/test_activations.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.forecast.anatomy import ACTIVATIONS, STAGES, Anatomy, Part
from fedft.training.objectives import AT_ONCE

FLOAT = 4
"""Bytes of a float32."""
Learner = tuple[Part, int]
"""A module that learns, and its rank; 0: its own weight does."""


@dataclass(frozen=True)
class Pass:
    """What a training pass is made on, and in what."""

    rows: int
    tokens: int
    """Of each row, padding among them."""
    learned: int
    """Places of all rows whose logits are computed."""
    masked: bool = True
    """Whether rows are padded, so that attention is given a mask."""
    value: int = FLOAT
    """Bytes of a number of the base: 2 in half precision."""
    autocast: bool = False
    dropout: float = 0.0
    """Before adapters."""
    checkpointing: bool = False

    @property
    def places(self) -> int:
        """Tokens of all rows."""
        return self.rows * self.tokens

    @property
    def width(self) -> int:
        """Bytes of a number that a matrix is multiplied with."""
        return 2 if self.autocast else self.value

    @property
    def stream(self) -> int:
        """Bytes of a number between layers: autocast leaves these in float32."""
        return FLOAT if self.autocast else self.value

    @property
    def alone(self) -> bool:
        """Whether each adapted layer keeps an input of its own: a cast of it, or what dropout leaves."""
        return self.autocast or self.value != FLOAT or self.dropout > 0


@dataclass(frozen=True)
class Learning:
    """What learns, as far as activations depend on it."""

    ranks: Mapping[str, int]
    """Rank by module, of those that learn; of full fine-tuning none."""
    full: bool = False
    """Every parameter of the base learns."""
    inputs: bool = True
    """Whether the inputs of modules that learn are kept: not where A of every pair is frozen, which passes them on."""

    def inside(self, of: Anatomy) -> list[list[Learner]]:
        """What learns in each layer."""
        found: list[list[Learner]] = [[] for _ in range(of.layers)]
        for name in of.parts if self.full else self.ranks:
            part = of.parts.get(name)
            if part is not None and part.layer >= 0:
                found[part.layer].append((part, self.ranks.get(name, 0)))
        return found


def lowest(of: Anatomy, learning: Learning) -> tuple[int, int] | None:
    """(layer, number of its stage) of the lowest module that learns; None where none in a layer does.

    Of full fine-tuning the embeddings are lowest, stage -1 of layer 0: gradients pass through all layers.
    """
    if learning.full:
        return (0, -1) if of.layers else None
    parts = [p for n in learning.ranks if (p := of.parts.get(n)) is not None and p.layer >= 0]
    return min(((p.layer, STAGES.index(p.role) if p.role in STAGES else 0) for p in parts), default=None)


def kept(of: Anatomy, learning: Learning, given: Pass) -> tuple[list[int], int]:
    """(bytes that each layer keeps until its gradients, bytes of the largest one while it is computed again).

    The first end with what stands behind the last layer, of full fine-tuning also before the first; all are 0 where
    nothing in a layer learns. The second is 0 without checkpointing. Logits are not among them.
    """
    low, inside = lowest(of, learning), learning.inside(of)
    if low is None:
        return [0] * (of.layers + 1), 0
    layer, stage = low
    whole = [0] * layer + [_layer(of, inside[layer], learning, given, stage)]
    whole += [_layer(of, inside[n], learning, given) for n in range(layer + 1, of.layers)]
    closing = of.closing_norm * _norm(of, learning.full, given) * given.places
    closing += (not of.vocabulary) * of.hidden * given.stream * given.places  # of which a head reads one token
    closing += learning.full * of.hidden * given.stream * (given.places + bool(of.vocabulary) * given.learned)
    if not given.checkpointing:
        return [*whole, closing], 0
    inputs = of.hidden * given.stream * given.places
    return [*([0] * layer + [inputs] * (of.layers - layer)), closing], max(whole)


def logits(of: Anatomy, given: Pass) -> tuple[int, int]:
    """(bytes that are kept of logits until their gradients, bytes beside these when the output layer has them).

    A float32 copy is kept, of log-softmax, and two more come with its gradient. Of more than 2^24 numbers the logits
    themselves are kept, and a piece of so many is computed again at a time (`OfLogits.each`).
    """
    numbers = given.learned * of.vocabulary
    if numbers <= AT_ONCE:
        return FLOAT * numbers, 2 * FLOAT * numbers
    return given.width * numbers, given.width * numbers + 3 * FLOAT * AT_ONCE


def _norm(of: Anatomy, full: bool, given: Pass) -> int:
    """Bytes per token that a norm of the hidden width keeps; RMSNorm computes in float32."""
    if of.centred:
        return of.hidden * given.stream + 2 * FLOAT
    return of.hidden * FLOAT + FLOAT + full * of.hidden * given.stream


def _attention(of: Anatomy, shared: bool, given: Pass) -> int:
    """Bytes per token that attention keeps; `shared`: its result is kept as the input of what follows anyway."""
    norms = FLOAT * (of.queries + of.keys + of.heads * (1 + of.keys / max(1, of.queries))) if of.head_norms else 0
    dropped = of.attention_dropout > 0
    if of.attention == "eager" or dropped:
        shares = of.heads * given.tokens * (given.width + 2 * dropped * FLOAT)
        return int(norms) + given.width * 3 * of.queries + shares
    keys = of.queries if given.masked else of.keys
    mask = given.tokens if given.masked else 0
    numbers = of.queries + 2 * keys + (not shared) * of.queries + mask
    return int(norms) + given.width * numbers + FLOAT * of.heads


def _inputs(learn: Sequence[Learner], whole: bool, given: Pass) -> int:
    """Bytes per token of the inputs that adapted or trained layers keep, unless they are passed on, and of ranks."""
    width = 2 if given.autocast else FLOAT
    ranks = width * sum(r for _, r in learn)
    if not whole:
        return ranks
    if given.alone and ranks:
        return ranks + width * sum(p.inputs for p, _ in learn) * (2 if given.dropout else 1)
    return ranks + width * sum({p.role: p.inputs for p, _ in learn}.values())


def _layer(of: Anatomy, learn: Sequence[Learner], learning: Learning, given: Pass, stage: int = -1) -> int:
    """Bytes that a layer keeps whose gradients go down to its stage of this number, or through it (-1)."""
    norm, inputs = _norm(of, learning.full, given), _inputs(learn, learning.inputs, given)
    if not of.known:  # as if each layer's output were kept, and its input again where it is adapted
        return given.places * (of.norms * norm + of.outputs * given.width + inputs)
    shared = learning.inputs and not given.alone and any(p.role == "attention_out" for p, _ in learn)
    dropped = of.hidden * given.stream * (of.hidden_dropout > 0)
    before, between, behind = (norm, norm, 0) if of.closing_norm else (0, norm, norm)
    behind += max(0, of.norms - 2) * norm
    parts = (
        before if stage < 0 else 0,
        _attention(of, shared, given) if stage < 1 else 0,
        dropped + between if stage < 2 else 0,
        of.feed_forward * given.width * (ACTIVATIONS.get(of.activation, 2) + 2 * of.gated) if stage < 3 else 0,
        dropped + behind + inputs,
    )
    return given.places * sum(parts)
