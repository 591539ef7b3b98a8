"""What an optimiser remembers of a client's tensors, as named tensors that stay with the client between rounds.

    "<tensor>/<key>"    moments and counts as the optimiser's own state has them, by the name of the tensor
    "<tensor>/"         the shape of that tensor, int64

Those of a tensor whose shape has changed since are dropped.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.tensors import Tensors
from fedft.contract import NOTHING

OWNER = "optimizer"
"""The drawer on the client in which they lie."""


def taken(
    optimizer: torch.optim.Optimizer, live: Mapping[str, nn.Parameter], before: Tensors = NOTHING
) -> dict[str, Tensor]:
    """Copies of the optimiser's state of the parameters `live`, on the CPU; what is neither tensor nor number is left.

    Numbers become float64 scalars. Of tensors that did not learn this time, what was kept `before` stays.
    """
    found = {n: x for n, x in before.items() if n.rpartition("/")[0] not in live}
    for name, parameter in live.items():
        if parameter in optimizer.state:
            found[name + "/"] = torch.tensor(parameter.shape, dtype=torch.int64)
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                found[f"{name}/{key}"] = value.detach().to("cpu", copy=True).contiguous()
            elif isinstance(value, int | float):
                found[f"{name}/{key}"] = torch.tensor(float(value), dtype=torch.float64)
    return found


def restore(optimizer: torch.optim.Optimizer, live: Mapping[str, nn.Parameter], kept: Tensors) -> None:
    """Give a fresh optimiser the state that `taken` found.

    A parameter begins anew where nothing was kept of it, or it had another shape then: its rank has changed.
    """
    for name, parameter in live.items():
        own: dict[str, Any] = {n.removeprefix(name + "/"): x for n, x in kept.items() if n.startswith(name + "/")}
        if (shape := own.pop("", None)) is None or shape.tolist() != [*parameter.shape]:
            continue
        for key, x in own.items():
            number = x.ndim == 0 and x.dtype == torch.float64
            counts_there = x.ndim or optimizer.defaults.get(
                "fused"
            )  # torch's own counts stay on the CPU, but for these
            where = parameter.device if counts_there else x.device
            optimizer.state[parameter][key] = (int(x) if float(x).is_integer() else float(x)) if number else x.to(where)
