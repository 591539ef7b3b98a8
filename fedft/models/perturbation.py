"""What forward passes see in the place of a model's parameters, one module at a time; the parameters never move.

    w + epsilon z_j                            a probe of weights in float32
    round(keep w0 + sum_j a_j z_j)             weights in half precision, which stand still at w0 for a whole run
    round(keep w0 + sum_j a_j z_j + e z_j)     and a probe of those

The sum is made in float32 from the bits of w0, and rounded once, each time anew: nothing is ever added in half
precision, so no step is too small to count and none leaves a trace when it is taken back. Beside the model it takes
one copy of the largest module, and a quarter of a million float32 to sum in where weights are in half precision.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from fedft.randomness.directions import Directions

CHUNK = 1 << 18  # elements summed in float32 at a time, as `hadamard` and `masked` cut what they keep
ALIGNMENT = 64  # bytes between the beginnings of two tensors: vectors, cache lines

Own = list[tuple[str, str, nn.Parameter]]
"""(slot, canonical name, parameter) of what a module owns itself."""


@dataclass(frozen=True)
class Offset:
    """Where weights that stand still at w0 are seen to be: keep w0 + sum_j coefficients[j] z_j."""

    z: Directions
    coefficients: Tensor
    """float64 [K]."""
    keep: float = 1.0
    """Factor of w0; weight decay makes it less than 1."""

    def moved(self, z: Directions, coefficients: Tensor, keep: float) -> "Offset":
        """The offset after a step: `keep` times this one, plus sum_j coefficients[j] z_j.

        `coefficients` is float64 [K]. Raises ValueError unless `z` are the directions of this offset.
        """
        if z is not self.z and z != self.z:
            raise ValueError("expected the directions that the weights are already moved along, got others")
        return Offset(z, keep * self.coefficients + coefficients, keep * self.keep)


class _Reads(TorchDispatchMode):
    """Notes in `found` the names of those tensors at `where` ({address: name}) that torch operations inside read."""

    def __init__(self, where: Mapping[int, str]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._where, self._on = where, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._on:
            addresses = (x.data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            self.found |= {self._where[a] for a in addresses if a in self._where}
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, operations are not watched."""
        self._on = False
        try:
            yield
        finally:
            self._on = True


class Probe:
    """Swaps perturbed copies of parameters in while the module that owns them runs, and out again behind it.

    A parameter that another module reads without its owner's forward is read unperturbed: see `watching_reads`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shift: tuple[Directions, int, float] | None = None
        """(z, index, epsilon): copies of the chosen parameters are moved by epsilon z_index; None: they are not."""
        self.tangent: tuple[Directions, int] | None = None
        """(z, index): copies of the chosen parameters are dual numbers with the tangent z_index; None: they are not."""
        self.offset: Offset | None = None
        """Where all watched weights are seen to be, chosen or not; None: where they are."""
        self._model = model
        self._chosen: Collection[str] = ()
        self._watched: Mapping[str, nn.Parameter] | None = None
        self._hooks: list[Any] = []
        self._owned: dict[nn.Module, Own] = {}
        self._real: dict[int, tuple[nn.Parameter, Tensor]] = {}
        """(parameter, its own data) while a copy is in its place, by id of the parameter; parameters hash slowly."""
        self._mine: dict[nn.Module, list[int]] = {}
        """Ids of the parameters that each running module has copies of."""
        self._slots: dict[tuple[nn.Module, str], nn.Parameter] = {}
        """Parameters that dual numbers stand in for, by module and attribute."""
        self._room: dict[nn.Module, list[Tensor]] = {}
        """A copy's memory for each parameter of each module: views of one buffer, see `_room_of`."""
        self._at = 0
        """Address of that buffer; 0 before there is one."""
        self._reads: _Reads | None = None
        """The watcher of the forward pass at hand."""
        self._read_well = False
        """Whether a forward pass was watched in which no weight was read past its owner."""

    @contextmanager
    def swapping(self, live: Mapping[str, nn.Parameter], only: Collection[str] | None) -> Iterator["Probe"]:
        """Watch the parameters `live`; inside, set `shift` or `tangent` of the probe that is given.

        `only` are the names of the parameters to be perturbed; None is all. At the end both are unset, and whatever a
        failed forward pass left swapped in is taken out.
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
        self._owned, self._room, self._at = {}, {}, 0
        for module in self._model.modules():
            slots = module.named_parameters(recurse=False, remove_duplicate=False)
            own = [(slot, names[p], p) for slot, p in slots if p in names]
            if own:
                self._owned[module] = own
                self._hooks.append(module.register_forward_pre_hook(lambda m, _a, own=own: self._in(m, own)))
                self._hooks.append(module.register_forward_hook(lambda m, _a, out, own=own: self._out(m, own, out)))
        self._watched = parameters

    @contextmanager
    def watching_reads(self) -> Iterator[None]:
        """Run one forward pass inside: weights that it reads past the modules that own them are refused at the end.

        Such a pass would see them at w0 instead of at the offset. Raises NotImplementedError naming them. Only the
        first pass is watched, since watching is slow, and none without an offset.
        """
        if self._read_well or self.offset is None or self._watched is None:
            yield
            return
        where = {p.data_ptr(): n for n, p in self._watched.items() if p.numel()}
        with _Reads(where) as reads:
            self._reads = reads
            try:
                yield
            finally:
                self._reads = None
        if reads.found:
            raise NotImplementedError(
                f"this model reads {', '.join(sorted(reads.found))} past the layers that own them, so they cannot "
                f"stand still; use [model] dtype = 'float32'"
            )
        self._read_well = True

    def seen(self, name: str, parameter: Tensor, out: Tensor) -> Tensor:
        """Set `out` to the values that forward passes see in the place of a parameter, and return it.

        Args:
            name: canonical name of the parameter.
            parameter: its own values, at w0.
            out: contiguous, of the parameter's shape, in any dtype; each value is summed in float32 and rounded once.
        """
        shift = self.shift if name in self._chosen else None
        if self.offset is None and shift is not None and parameter.dtype == torch.float32:
            z, index, epsilon = shift
            z.add_into(out, parameter, name, index, epsilon)
            return out
        flat, to = parameter.detach().view(-1), out.view(-1)
        room = torch.empty(min(CHUNK, len(flat)), dtype=torch.float32, device=flat.device)
        for at in range(0, len(flat), CHUNK):
            here = slice(at, min(at + CHUNK, len(flat)))
            x = room[: here.stop - at].copy_(flat[here])
            if self.offset is not None:
                if self.offset.keep != 1.0:
                    x.mul_(self.offset.keep)
                self.offset.z.axpy_(x, name, self.offset.coefficients, start=at)
            if shift is not None:
                z, index, epsilon = shift
                z.add_(x, name, index, epsilon, start=at)
            to[here] = x
        return out

    def _in(self, module: nn.Module, own: Own) -> None:
        """Before a module runs: put copies in the place of its own parameters."""
        if self.offset is None and not self._chosen:
            return
        with self._reads.paused() if self._reads else nullcontext():
            self._swap_in(module, own)

    def _swap_in(self, module: nn.Module, own: Own) -> None:
        """Put a dual number in the place of each parameter with a tangent, a copy in the place of each other one."""
        room = None if self._real or torch.is_grad_enabled() else self._room_of(module)  # autograd may keep its own
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
        # a view of a copy, as of a table of positions, would be overwritten by the next module's
        return self._apart(out) if isinstance(out, Tensor) else tree_map_only(Tensor, self._apart, out)

    def _apart(self, out: Tensor) -> Tensor:
        """`out`, copied if it lies in the memory that copies of parameters share."""
        return out.clone() if self._at and out.untyped_storage().data_ptr() == self._at else out

    def _dual(self, name: str, parameter: nn.Parameter, z: Directions, index: int) -> Any:
        """The dual number of a parameter as it is seen, with the tangent z_index in the parameter's dtype."""
        direction = z.direction(name, index, parameter.shape, device=parameter.device).to(parameter.dtype)
        here = parameter.detach()
        if self.offset is not None:
            here = self.seen(name, parameter, torch.empty_like(here))
        return forward_ad.make_dual(here, direction)

    def _room_of(self, module: nn.Module) -> list[Tensor]:
        """One tensor for a copy of each parameter that `module` owns, all in one scratch buffer.

        The buffer is sized for the module that owns most, and holds the copies of the one module that is running: it
        must not be asked for while a module around this one has copies. Fresh memory for each module would cost more
        than the sums.
        """
        if not self._room:
            sizes = {m: [-(-p.nbytes // ALIGNMENT) * ALIGNMENT for _, _, p in own] for m, own in self._owned.items()}
            device = next(iter(self._watched.values())).device if self._watched else None
            room = torch.empty(max(map(sum, sizes.values())), dtype=torch.uint8, device=device)
            self._at = room.data_ptr()
            for m, own in self._owned.items():
                places = zip(accumulate(sizes[m], initial=0), own, strict=False)
                self._room[m] = [room[at:][: p.nbytes].view(p.dtype).view(p.shape) for at, (_, _, p) in places]
        return self._room[module]
