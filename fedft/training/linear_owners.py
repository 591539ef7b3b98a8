"""Which linear layer owns each parameter that is trained: where a record's gradient is one product.

LoRA's factors are such layers, also on GPT-2's Conv1D, and so are most heads of classifiers.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedft.errors import ConfigError


def linear_owners(handle: Any, live: Mapping[str, nn.Parameter]) -> dict[nn.Module, dict[str, str]]:
    """{layer: {"weight" or "bias": canonical name}} of the parameters `live`, each of which one linear layer owns.

    Raises ConfigError, naming the parameter, for one whose gradient is not one product for each row: of another kind of
    layer, of two layers, of experts, of the output layer of a model that writes text; and for batch normalisation.
    """
    model: nn.Module = handle.model
    if coupling := next((n for n, m in model.named_modules() if isinstance(m, _BatchNorm)), None):
        raise unfit(coupling, "batch normalisation couples the records of a batch")
    names = {id(p): n for n, p in live.items()}
    output = getattr(model, "get_output_embeddings", lambda: None)()
    learned_places_only = set(output.modules()) if isinstance(output, nn.Module) else set()
    owners: dict[nn.Module, dict[str, str]] = defaultdict(dict)
    owned: set[str] = set()
    for path, module in model.named_modules():
        for slot, parameter in module.named_parameters(recurse=False):
            if (name := names.get(id(parameter))) is None:
                continue
            if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
                raise unfit(name, f"it is of a {type(module).__name__}, no linear layer")
            if "experts" in path.split("."):
                raise unfit(name, "experts see tokens of all records, not records")
            if module in learned_places_only:
                raise unfit(name, "the output layer sees learned tokens of all records, not records")
            if name in owned:
                raise unfit(name, "two layers share it")
            owners[module][slot] = name
            owned.add(name)
    if lost := [n for n in live if n not in owned]:
        raise unfit(lost[0], "no layer owns it")
    return dict(owners)


def unfit(name: str, why: str) -> ConfigError:
    """The error that says why the parameter or module `name` has no gradients of single records."""
    return ConfigError(
        f"[privacy] mode = 'example-dp' clips gradients of single records, which {name} has none of: {why}; "
        "[model] targets and modules_to_save choose what is trained"
    )
