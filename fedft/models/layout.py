"""Which layers and parameters of a base model can be trained, by name and shape."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedft.contract import Layout
from fedft.models import tasks
from fedft.models.experts import experts_of
from fedft.models.load import Base
from fedft.models.packed_linear import PackedLinear
from fedft.models.parameters import order_of, parameters_of
from fedft.models.targets import chosen
from fedft.models.whole_modules import inside, whole_modules


def layout_of(
    base: Base, targets: str | list[str], *, layers: str | None = None, modules_to_save: Sequence[str] = ()
) -> Layout:
    """The trainable parts of a base model: layers and experts (out, in), the head's and all parameters, by name.

    Parameters that no file keeps are no part of it.

    Args:
        base: the loaded model.
        targets: "all-linear" (every linear layer but the output and the head, and every expert's matrix), endings of
            names such as "q_proj", or regular expressions, see `targets`; none where no layer gets an adapter.
        layers: numbers of the model's layers that targets are taken from, as "0-3, 8"; None: all, and what is in none.
        modules_to_save: endings of modules that are trained whole, see `whole_modules`; nothing in them gets adapters.
    Raises:
        DataError: a target that chooses no layer; the message names the endings that there are. "all-linear" for a
            model whose experts are in another form than one matrix of each. Numbers of layers that there are not.
            Modules that cannot be trained whole.
    """
    model = base.model
    linear = linear_layers(model)
    whole = whole_modules(base, modules_to_save)
    output = model.get_output_embeddings() if tasks.of(base.task).generates else None
    body = {n: s for n, s in linear.items() if model.get_submodule(n) is not output and not inside(n, whole)}
    experts = {n: e.out_in for n, e in experts_of(model).items() if not inside(n, whole)}
    modules = {n: (body | experts)[n] for n in chosen(base, body, experts, targets, layers)}
    made = getattr(model, "_keys_to_ignore_on_save", None) or ()  # by formula at every loading, as Marian's positions
    parameters = {n: tuple(p.shape) for n, p in parameters_of(model).items() if n not in made}
    parameters |= {f"{n}.weight": _out_in(m) for n, m in model.named_modules() if isinstance(m, PackedLinear)}
    heads = {n: s for n, s in parameters.items() if inside(n, whole)}
    order = tuple(n for n in order_of(model) if n in parameters)
    fused = frozenset(modules.keys() & experts)
    return Layout(_in_order(modules), _in_order(heads), _in_order(parameters), order, fused, whole)


def linear_layers(model: nn.Module) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of a model by name, of its output and head, too, in the model's own order."""
    return {n: _out_in(m) for n, m in model.named_modules() if _is_linear(m)}


def _in_order(shapes: dict[str, Any]) -> dict[str, Any]:
    """The same in canonical order: bytewise by name."""
    return dict(sorted(shapes.items(), key=lambda item: item[0].encode()))


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: torch's, or GPT-2's Conv1D, which keeps the weight transposed."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _out_in(module: Any) -> tuple[int, int]:
    """(out, in), also of a layer whose weight is packed into another shape (4 and 8 bits)."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    rows, columns = module.weight.shape  # Conv1D keeps it transposed
    return columns, rows
