"""Perturbed copies that forward passes see in the place of a model's parameters; the parameters themselves never move.

    w + epsilon z_j                            a probe of weights in float32
    round(keep w0 + sum_j a_j z_j)             weights in half precision, fixed at w0 for a whole run
    round(keep w0 + sum_j a_j z_j + e z_j)     and a probe of those

How the sum is made and rounded is in `moved_copies.py`. Copies exist for one module at a time: the memory beside the
model is one copy of the largest module, and without compiled kernels 2^18 float32 to sum in where weights are in half
precision.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedft.models.scratch_copies import ScratchCopies
from fedft.models.watched_reads import WatchedReads
from fedft.randomness import moved_copies
from fedft.randomness.directions import Directions
from fedft.randomness.moved_copies import Offset, Step

Own = list[tuple[str, str, nn.Parameter]]
"""(attribute, canonical name, parameter) of each watched parameter that a module owns itself."""


class Probe:
    """Swaps perturbed copies of parameters in while the module that owns them runs, and out again behind it.

    A parameter that another module reads without its owner's forward is seen unperturbed: see `watching_reads`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shift: Step | None = None
        """(z, index, epsilon): the chosen parameters are seen moved by epsilon z_index; None: they are not."""
        self.tangent: tuple[Directions, int] | None = None
        """(z, index): the chosen parameters are seen as dual numbers with the tangent z_index; None: they are not."""
        self.offset: Offset | None = None
        """Where all watched parameters are seen, chosen or not; None: at their own values."""
        self._model = model
        self._chosen: Collection[str] = ()
        self._watched: Mapping[str, nn.Parameter] | None = None
        self._hooks: list[Any] = []
        self._real: dict[int, tuple[nn.Parameter, Tensor]] = {}
        """(parameter, its own data) while a copy is in its place, by id of the parameter; parameters hash slowly."""
        self._mine: dict[nn.Module, list[int]] = {}
        """Ids of the parameters that each running module has copies of."""
        self._slots: dict[tuple[nn.Module, str], nn.Parameter] = {}
        """Parameters that dual numbers stand in for, by module and attribute."""
        self._scratch = ScratchCopies({})
        self._reads: WatchedReads | None = None
        """The watcher of the forward pass that is running."""
        self._read_well = False
        """Whether a forward pass was watched in which no weight was read past its owner."""

    @contextmanager
    def swapping(self, live: Mapping[str, nn.Parameter], only: Collection[str] | None) -> Iterator["Probe"]:
        """Watch the parameters `live`; inside, `shift` or `tangent` of the probe it yields may be set.

        `only` are the names of the parameters to be perturbed; None: all. At the end both are unset, and copies that a
        failed forward pass left swapped in are taken out.
        """
        self.watch(live)
        self._chosen = live if only is None else set(only)
        self.undo()
        try:
            yield self
        finally:
            self.shift = self.tangent = None
            self._chosen = ()
            self.undo()

    def directional_derivative(
        self,
        loss: Callable[[], Tensor],
        live: Mapping[str, nn.Parameter],
        only: Collection[str] | None,
        z: Directions,
        index: int,
    ) -> tuple[Tensor, Tensor]:
        """(derivative along z_index, value) of what one call of `loss` gives, which runs the model; see `swapping`.

        Attention runs in its explicit form: the fused kernels have no forward-mode rules. Raises NotImplementedError
        for a model with another operation that has none.
        """
        try:
            probing = self.swapping(live, only)
            with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), probing:
                self.tangent = (z, index)
                found = forward_ad.unpack_dual(loss())
        except (NotImplementedError, RuntimeError) as e:
            if "forward AD" not in str(e) and "jvp" not in str(e):
                raise
            reason = str(e).splitlines()[0]
            raise NotImplementedError(f"this model has no forward-mode derivative; use two_sided: {reason}") from e
        if found.tangent is None:
            raise NotImplementedError("this model's loss lost its forward-mode derivative; use two_sided")
        return found.tangent, found.primal

    def undo(self) -> None:
        """Put every parameter's own values back in the place of its copy."""
        for parameter, data in self._real.values():
            parameter.data = data
        for (module, slot), parameter in self._slots.items():
            module._parameters[slot] = parameter
        self._real, self._mine, self._slots = {}, {}, {}

    def watch(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Hook the modules that own these parameters (by canonical name); a tied one is hooked at each owner."""
        if parameters is self._watched:
            return
        for hook in self._hooks:
            hook.remove()
        names = {p: n for n, p in parameters.items()}
        self._hooks = [self._model.register_forward_pre_hook(lambda _m, _a: self.undo())]  # of a pass that failed
        owned: dict[nn.Module, list[nn.Parameter]] = {}
        for module in self._model.modules():
            slots = module.named_parameters(recurse=False, remove_duplicate=False)
            own = [(slot, names[p], p) for slot, p in slots if p in names]
            if own:
                owned[module] = [p for _, _, p in own]
                self._hooks.append(module.register_forward_pre_hook(lambda m, _a, own=own: self._in(m, own)))
                self._hooks.append(module.register_forward_hook(lambda m, _a, out, own=own: self._out(m, own, out)))
        self._watched, self._scratch = parameters, ScratchCopies(owned)

    @contextmanager
    def watching_reads(self) -> Iterator[None]:
        """Run one forward pass inside; raises NotImplementedError if it read a weight past the module that owns it.

        Such a pass saw that weight at w0 instead of at the offset. Only the first pass is watched, since watching is
        slow, and none without an offset.
        """
        if self._read_well or self.offset is None or self._watched is None:
            yield
            return
        with WatchedReads(self._watched) as reads:
            self._reads = reads
            try:
                yield
            finally:
                self._reads = None
        reads.refuse()
        self._read_well = True

    def seen(self, name: str, parameter: Tensor, out: Tensor) -> Tensor:
        """Set `out` to the values that forward passes see in the place of a parameter, and return `out`.

        Args:
            name: canonical name of the parameter.
            parameter: the parameter's own values, at w0; not modified.
            out: contiguous, of the parameter's shape, in any dtype; each value is summed in float32 and rounded once.
        """
        shift = self.shift if name in self._chosen else None
        if self.offset is None and shift is not None and parameter.dtype == torch.float32:
            z, index, epsilon = shift
            z.add_into(out, parameter, name, index, epsilon)
            return out
        moved_copies.fill(out, parameter.detach(), name, self.offset, shift)
        return out

    def _in(self, module: nn.Module, own: Own) -> None:
        """Before a module runs: put copies in the place of its own parameters."""
        if self.offset is None and not self._chosen:
            return
        if self._reads is None:
            self._swap_in(module, own)
            return
        with self._reads.paused():
            self._swap_in(module, own)

    def _swap_in(self, module: nn.Module, own: Own) -> None:
        """Put a dual number in the place of each parameter with a tangent, a copy in the place of each other one."""
        room = None if self._real or torch.is_grad_enabled() else self._scratch.of(module)  # autograd may keep its own
        for i, (slot, name, parameter) in enumerate(own):
            if self.tangent is not None and name in self._chosen:
                self._slots[module, slot] = parameter
                # a slot takes any tensor; only assignment by attribute insists on a Parameter, which has no tangent
                module._parameters[slot] = self._dual(name, parameter, *self.tangent)
            elif (self.offset is not None or name in self._chosen) and id(parameter) not in self._real:
                # not so a tied one that runs inside another of its owners
                data = parameter.data
                copy = self.seen(name, data, room[i] if room else torch.empty_like(data))
                self._real[id(parameter)] = parameter, data
                self._mine.setdefault(module, []).append(id(parameter))
                parameter.data = copy

    def _out(self, module: nn.Module, own: Own, out: Any) -> Any:
        """Behind a module: put its own parameters back; returns its output, apart from the copies' memory."""
        for slot, _, _ in own if self._slots else ():
            if (parameter := self._slots.pop((module, slot), None)) is not None:
                module._parameters[slot] = parameter
        if not (mine := self._mine.pop(module, ())):
            return out
        for key in mine:
            parameter, data = self._real.pop(key)
            parameter.data = data
        return self._scratch.apart(out)

    def _dual(self, name: str, parameter: nn.Parameter, z: Directions, index: int) -> Any:
        """A parameter's values as forward passes see them, with the tangent z_index in the parameter's dtype."""
        direction = z.direction(name, index, parameter.shape, device=parameter.device).to(parameter.dtype)
        here = parameter.detach()
        if self.offset is not None:
            here = self.seen(name, parameter, torch.empty_like(here))
        return forward_ad.make_dual(here, direction)
