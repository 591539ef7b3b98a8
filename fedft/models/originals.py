"""The values that a model's parameters were loaded with, w0, for parameters that have been moved from there."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.contract import NOTHING


class Originals:
    """The originals w0 of a model's parameters, in their dtypes, each known from the moment before it is first moved.

    One that the model's files hold is read there whenever it is asked for, and no copy of it is kept.
    """

    def __init__(self, stored: Mapping[str, Tensors] = NOTHING) -> None:
        """`stored`: the file that holds a tensor, by the tensor's name; of parameters on the CPU it is used."""
        self._stored = dict(stored)
        self._w0: dict[str, Tensor | torch.dtype] = {}
        """A copy; or the parameter's dtype, where rounding what is stored to it gives w0."""
        self._last: dict[str, Tensors] = {}
        """What has the changes, by name, that parameters were last moved by, until somebody asks."""

    def _of(self, name: str, parameter: Tensor) -> Tensor:
        """The original w0 of a parameter; its present values at the first call."""
        if name not in self._w0:
            now = parameter.detach()
            self._w0[name] = now.dtype if self._is_stored(name, now) else now.clone()
        return self._kept(name)

    def _is_stored(self, name: str, now: Tensor) -> bool:
        """Whether the model's files hold exactly these values, under the parameter's name."""
        if now.device.type != "cpu" or name not in self._stored:
            return False
        there = self._stored[name][name]
        return there.is_floating_point() and tensors.same_bits(there.to(now.dtype), now)

    def _kept(self, name: str) -> Tensor:
        """w0 of a parameter that has been moved."""
        w0 = self._w0[name]
        return w0 if isinstance(w0, Tensor) else self._stored[name][name].to(w0)

    def move(self, name: str, parameter: Tensor, change: Tensor) -> None:
        """Set a parameter to w0 + change (float32) in place, summed in float32 and rounded once."""
        w0 = self._of(name, parameter)
        parameter.copy_(w0 + change.to(w0.device))
        self._last.pop(name, None)

    def move_to(self, name: str, parameter: Tensor, changes: Tensors) -> None:
        """`move` by the change that `changes` has under this name, and may be asked for again: see `start`."""
        self.move(name, parameter, changes[name])
        self._last[name] = changes

    def restore(self, name: str, parameter: Tensor) -> None:
        """Put a parameter back to w0 in place, bit for bit; at the first call of all, keep its values as w0."""
        self._last.pop(name, None)
        if name in self._w0:
            parameter.copy_(self._kept(name))
        else:
            self._of(name, parameter)

    def original(self, name: str, parameter: Tensor) -> Tensor:
        """w0 of a parameter that has been moved, in its dtype; it may share memory with what is kept."""
        return self._kept(name).to(parameter.dtype)

    @contextmanager
    def instead(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Inside, these parameters have their original values; behind it, what they had before, without a copy."""
        now = {n: p.data for n, p in parameters.items() if n in self._w0}
        try:
            for n, x in now.items():
                parameters[n].data = self.original(n, x).to(x.device)
            yield
        finally:
            for n, x in now.items():
                parameters[n].data = x

    def change(self, name: str, parameter: Tensor) -> Tensor:
        """The parameter's values - w0, float32 on the CPU; zeros for one that has not been moved."""
        if name in self._w0:
            return _since(self._kept(name), parameter.detach())
        return torch.zeros_like(parameter.detach(), dtype=torch.float32, device="cpu")

    def start(self, name: str, parameter: Tensor) -> Tensor | Callable[[], Tensor]:
        """`change` of the parameter as it stands now, for later: found again from w0 where it was just moved there."""
        last = self._last.pop(name, None)
        if last is None:
            return self.change(name, parameter)
        kind = parameter.dtype

        def moved(w0: Tensor) -> Tensor:
            return (w0 + last[name].to(w0.device)).to(kind)

        def again() -> Tensor:
            w0 = self._kept(name)  # once: it may have to be read
            return _since(w0, moved(w0))

        if not torch.equal(moved(self._kept(name)), parameter):  # somebody has moved it further
            return self.change(name, parameter)
        return again


def _since(w0: Tensor, now: Tensor) -> Tensor:
    """now - w0, in float32 on the CPU."""
    return now.to("cpu", torch.float32) - w0.to("cpu", torch.float32)
