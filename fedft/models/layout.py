"""Which layers and parameters of a base model can be trained, by name and shape."""

from typing import Any

from torch import nn

from fedft.contract import Layout
from fedft.models.load import Base, lacking
from fedft.models.parameters import order_of, parameters_of
from fedft.models.targets import chosen


def layout_of(base: Base, targets: str | list[str]) -> Layout:
    """The trainable parts of a base model: linear layers (out, in), the head's and all parameters, by canonical name.

    Args:
        base: the loaded model.
        targets: "all-linear" (every linear layer but the output and the head), endings of layers' names such as
            "q_proj", or regular expressions, see `targets`; none where no layer gets an adapter.
    Raises:
        DataError: a target that chooses no layer; the message names the endings that there are. "all-linear" for a
            model whose experts no linear layer holds.
    """
    model = base.model
    linear = {n: _out_in(m) for n, m in model.named_modules() if _is_linear(m)}
    head = head_modules(base)
    output = model.get_output_embeddings() if base.task == "causal-lm" else None
    body = {n: s for n, s in linear.items() if model.get_submodule(n) is not output and not _inside(n, head)}
    modules = {n: body[n] for n in chosen(base, body, targets)}
    parameters = {n: tuple(p.shape) for n, p in parameters_of(model).items()}
    heads = {n: s for n, s in parameters.items() if _inside(n, head)}
    return Layout(_in_order(modules), _in_order(heads), _in_order(parameters), order_of(model))


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


def head_modules(base: Base) -> set[str]:
    """Modules of a classifier that are trained and saved whole, by their paths; none of a causal language model.

    Those beside the pre-trained body; and of the body what the checkpoint has no weights of, as a pooler is.
    Raises DataError where that is a part of a layer or an embedding: they would be random numbers.
    """
    if base.task == "causal-lm":
        return set()
    children = base.model.named_children()
    beside = {n for n, m in children if n != base.model.base_model_prefix and any(True for _ in m.parameters())}
    inside = {n for n in base.drawn if not _inside(n, beside)}
    if lost := [n for n in inside if "pooler" not in n]:
        raise lacking(base.source, base.model.config.model_type, lost)
    return beside | {n[: n.index("pooler") + len("pooler")] for n in inside}


def _inside(name: str, modules: set[str]) -> bool:
    """Whether a name of a module or a parameter is one of the modules, or in one."""
    return any(name == m or name.startswith(f"{m}.") for m in modules)
