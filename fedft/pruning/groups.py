"""Which rows and columns of a model's weights go together when a part of the model is pruned (dependency groups).

    attention       a group is a key/value head with all its query heads: rows of query, key, value, columns of output
    feed-forward    a group is a channel: a row of what widens the hidden states, a column of what narrows them again

Rows and columns are those of a weight as [out, in], whatever its orientation in memory; the bias of a row goes with it.
The width of the residual stream stays, so that of each weight one side is cut. Where the groups are stands in `FORMS`,
by model type, and is never guessed from names.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fedft import check
from fedft.errors import ConfigError, DataError

Side = Literal["rows", "columns"]


class Part(NamedTuple):
    """The rows, or the columns, of one weight [out, in] that belong to the groups of a structure."""

    module: str
    """Path of the layer in the model."""
    side: Side
    width: int
    """How many of each group lie beside each other."""
    blocks: int = 1
    """How often all groups follow each other in the weight: 3 where query, key and value are one."""

    def kept(self, of_groups: Tensor) -> Tensor:
        """Whether each row or column is kept, bool [groups x width x blocks], where `of_groups`, bool [groups], is.

        >>> Part("", "rows", width=2, blocks=2).kept(torch.tensor([True, False])).int().tolist()
        [1, 1, 0, 0, 1, 1, 0, 0]
        """
        return of_groups.repeat_interleave(self.width).repeat(self.blocks)

    def sums(self, of_places: Tensor) -> Tensor:
        """The sum over each group's rows or columns, [groups], of a number for each of them.

        >>> Part("", "rows", width=2, blocks=2).sums(torch.arange(8.0)).tolist()
        [10.0, 18.0]
        """
        return of_places.view(self.blocks, -1, self.width).sum((0, 2))


class Count(NamedTuple):
    """A number of a module that says how wide a structure is, and must follow it where that is cut."""

    module: str
    attribute: str
    per_group: int


class Structure(NamedTuple):
    """The attention or the feed-forward part of one layer, which groups can be pruned from."""

    name: str
    """Path of the layer, and `.attention` or `.feed_forward`."""
    size: int
    """How many groups it has."""
    parts: tuple[Part, ...]
    counts: tuple[Count, ...]
    weights: int
    """Of the base in each group, without biases."""

    @property
    def inputs(self) -> Part:
        """The columns of the weight that narrows the structure: a group whose inputs there are 0 does nothing."""
        return next(part for part in self.parts if part.side == "columns")


@dataclass(frozen=True)
class Groups:
    """The groups of a model, in order of its layers, attention before feed-forward; one vector has a place for each."""

    structures: tuple[Structure, ...]

    @property
    def size(self) -> int:
        """How many groups there are in all."""
        return sum(s.size for s in self.structures)

    def each(self) -> Iterator[tuple[Structure, slice]]:
        """Every structure with its place in a vector of all groups."""
        start = 0
        for s in self.structures:
            yield s, slice(start, start := start + s.size)

    @cached_property
    def weights(self) -> Tensor:
        """Weights of the base in each group, int64 [groups]."""
        return torch.cat([torch.full((s.size,), s.weights) for s in self.structures])

    @cached_property
    def parts(self) -> dict[str, tuple[Part, slice]]:
        """By module: what of its weight belongs to groups, and the place of these in a vector of all groups."""
        return {part.module: (part, place) for s, place in self.each() for part in s.parts}


class _Part(NamedTuple):
    module: str
    side: Side
    of: Literal["query", "key_value", "channel"] = "channel"
    blocks: int = 1


class Form(NamedTuple):
    """Where the groups of one family of models are; paths are below a layer."""

    layers: str
    """Path of the layers below the model's body."""
    attention: tuple[_Part, ...]
    feed_forward: tuple[_Part, ...]
    counts: tuple[tuple[str, str, Literal["heads", "width"]], ...] = ()
    """(module, attribute, what it counts) of the attention: heads, or rows of the query."""


_DECODER = Form(
    "layers",
    (
        _Part("self_attn.q_proj", "rows", "query"),
        _Part("self_attn.k_proj", "rows", "key_value"),
        _Part("self_attn.v_proj", "rows", "key_value"),
        _Part("self_attn.o_proj", "columns", "query"),
    ),
    (_Part("mlp.gate_proj", "rows"), _Part("mlp.up_proj", "rows"), _Part("mlp.down_proj", "columns")),
)
_ENCODER = Form(
    "encoder.layer",
    (
        _Part("attention.self.query", "rows", "query"),
        _Part("attention.self.key", "rows", "key_value"),
        _Part("attention.self.value", "rows", "key_value"),
        _Part("attention.output.dense", "columns", "query"),
    ),
    (_Part("intermediate.dense", "rows"), _Part("output.dense", "columns")),
    (("attention.self", "num_attention_heads", "heads"), ("attention.self", "all_head_size", "width")),
)
_GPT2 = Form(
    "h",
    (_Part("attn.c_attn", "rows", "query", blocks=3), _Part("attn.c_proj", "columns", "query")),
    (_Part("mlp.c_fc", "rows"), _Part("mlp.c_proj", "columns")),
    (("attn", "num_heads", "heads"), ("attn", "split_size", "width")),
)
FORMS: dict[str, Form] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _DECODER),
    **dict.fromkeys(("bert", "roberta"), _ENCODER),
    "gpt2": _GPT2,
}
"""By `model_type` of a model's configuration. A new family is one entry, and a model in the room's tests."""


def groups_of(model: nn.Module) -> Groups:
    """The groups of a whole model of transformers, with adapters in it or without.

    Raises ConfigError for a type of model that is not in the table, DataError where a layer has another size than the
    table says, as one that was sliced before.
    """
    whole: Any = model
    config, prefix = whole.config, whole.base_model_prefix
    if (form := FORMS.get(config.model_type)) is None:
        near = check.nearest(config.model_type, FORMS)
        raise ConfigError(
            f"[model] id: where the heads and channels of a {config.model_type!r} model are is not known{near}; "
            f"pruning knows {', '.join(FORMS)}"
        )
    heads, body = config.num_attention_heads, getattr(whole, prefix, whole)
    groups = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    width = {"query": heads // groups * head, "key_value": head, "channel": 1}
    path = form.layers if body is model else f"{prefix}.{form.layers}"
    found = []
    for at in (f"{path}.{n}" for n in range(config.num_hidden_layers)):
        counts = tuple(
            Count(f"{at}.{m}", attribute, heads // groups if of == "heads" else width["query"])
            for m, attribute, of in form.counts
        )
        for kind, parts in (("attention", form.attention), ("feed_forward", form.feed_forward)):
            own = tuple(Part(f"{at}.{p.module}", p.side, width[p.of], p.blocks) for p in parts)
            size = groups if kind == "attention" else _size(model, own[0])
            weights = sum(p.width * p.blocks for p in own) * config.hidden_size
            found.append(Structure(f"{at}.{kind}", size, own, counts if kind == "attention" else (), weights))
            _check_sizes(model, found[-1])
    return Groups(tuple(found))


def groups_if_known(model: nn.Module) -> Groups | None:
    """As `groups_of`; None for a model that is refused there, or has no configuration of transformers."""
    try:
        return groups_of(model) if hasattr(model, "base_model_prefix") else None
    except (ConfigError, DataError):
        return None


def adapted(groups: Groups | None, modules: Collection[str]) -> Groups:
    """The groups of a layout, if each structure has a weight among the modules that get adapters.

    Raises ConfigError: nothing is known of the model's groups; or of some no gradient would say what they are worth.
    """
    if groups is None:
        raise ConfigError(
            f"[model] id: where the heads and channels of this model are is not known; pruning knows {', '.join(FORMS)}"
        )
    if bare := [s.name for s in groups.structures if not any(part.module in modules for part in s.parts)]:
        raise ConfigError(
            f"[model] targets: {len(bare)} of {len(groups.structures)} structures, such as {bare[0]}, have no adapter, "
            f'whose gradients would say what to prune there; targets = "all-linear" would do'
        )
    return groups


def _size(model: nn.Module, part: Part) -> int:
    """How many rows, or columns, the part's weight has."""
    layer: Any = model.get_submodule(part.module)
    layer = getattr(layer, "base_layer", layer)
    if type(layer).__name__ == "Conv1D":
        return int(layer.weight.shape[1 if part.side == "rows" else 0])
    return int(layer.out_features if part.side == "rows" else layer.in_features)


def _check_sizes(model: nn.Module, structure: Structure) -> None:
    """Raise DataError where a weight of the model has other rows or columns than the structure says."""
    for part in structure.parts:
        wanted, found = structure.size * part.width * part.blocks, _size(model, part)
        if wanted != found:
            raise DataError(
                f"[model] id: {part.module} has {found} {part.side}, wanted {wanted}: is it sliced already?"
            )
