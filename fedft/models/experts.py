"""Experts that a model keeps in one parameter, [experts, out, in] or [experts, in, out]: each matrix as a module.

`model.layers.0.mlp.experts.gate_up_proj.3` is the fourth matrix of the parameter `gate_up_proj`; a parameter that is
called `weight` gives its module's own name. So what acts on the weights of layers acts on each expert.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fedft.models.parameters import parameters_of


@dataclass(frozen=True)
class Expert:
    """One matrix of a parameter that holds one for each expert."""

    owner: nn.Module
    """The module that the parameter belongs to."""
    parameter: str
    """The parameter's canonical name in the model."""
    index: int
    """Of the matrix in the parameter, from 0."""

    @property
    def attribute(self) -> str:
        """What the owner calls the parameter."""
        return self.parameter.rpartition(".")[2]

    @property
    def count(self) -> int:
        """How many experts the parameter holds."""
        return len(self.owner.get_parameter(self.attribute))

    @property
    def transposed(self) -> bool:
        """Whether matrices are kept as [in, out]; peft reads the same mark of transformers."""
        return bool(getattr(self.owner, "is_transposed", False))

    @property
    def weight(self) -> Tensor:
        """A view of the matrix in the parameter's memory: what is written to it, the model computes with."""
        return self.owner.get_parameter(self.attribute).detach()[self.index]

    @property
    def out_in(self) -> tuple[int, int]:
        """(out, in), whatever the orientation in memory."""
        rows, columns = self.weight.shape
        return (columns, rows) if self.transposed else (rows, columns)


def experts_of(model: nn.Module) -> dict[str, Expert]:
    """Every matrix of every parameter that holds one for each expert, by name."""
    return {
        f"{n.removesuffix('.weight')}.{i}": Expert(_owner(model, n), n, i)
        for n, p in parameters_of(model).items()
        if _holds_experts(_owner(model, n), n, p)
        for i in range(len(p))
    }


def among(model: nn.Module, names: Collection[str]) -> dict[str, Expert]:
    """Those of the names that are experts of the model, in the order of `names`."""
    every = experts_of(model) if names else {}
    return {n: every[n] for n in names if n in every}


def by_parameter(experts: Mapping[str, Expert]) -> dict[str, dict[str, Expert]]:
    """The experts of each parameter together, by the parameter's name, in order of first appearance."""
    found: dict[str, dict[str, Expert]] = {}
    for n, expert in experts.items():
        found.setdefault(expert.parameter, {})[n] = expert
    return found


def unreached(model: nn.Module) -> list[str]:
    """Parameters that are many matrices, or all experts' in one, in a form that no adapter can take apart, by name."""
    return [
        n
        for n, p in parameters_of(model).items()
        if _is_fused(_owner(model, n), n, tuple(p.shape)) and not _holds_experts(_owner(model, n), n, p)
    ]


def _owner(model: nn.Module, parameter: str) -> nn.Module:
    """The module that a parameter belongs to."""
    return model.get_submodule(parameter.rpartition(".")[0])


def _holds_experts(owner: nn.Module, name: str, p: nn.Parameter) -> bool:
    """Whether a parameter is floats [experts, ., .] of a module that computes with them in a forward of its own."""
    called = f"{name}.{type(owner).__name__}".lower()
    runs = type(owner).forward is not nn.Module.forward
    return (
        _is_fused(owner, name, tuple(p.shape)) and p.ndim == 3 and p.is_floating_point() and "expert" in called and runs
    )


def _is_fused(owner: nn.Module, name: str, shape: tuple[int, ...]) -> bool:
    """Whether a parameter is a stack of matrices, or a matrix of experts, in a module that is no layer of torch's."""
    if isinstance(owner, _ConvNd | nn.Linear | nn.Embedding) or type(owner).__name__ == "Conv1D":
        return False
    *path, last = name.split(".")
    if last.endswith("bias") or last.startswith("lora_"):  # vectors, one for each expert; an adapter that is in already
        return False
    return sum(n > 1 for n in shape) > 2 or ("experts" in path and len(shape) > 1)
