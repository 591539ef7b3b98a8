"""One scratch buffer for perturbed copies of parameters: memory for one module, used by each module in its turn."""

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

ALIGNMENT = 64  # bytes between the beginnings of two tensors: vectors, cache lines


class ScratchCopies:
    """Memory for a copy of each parameter of one running module. Fresh memory per module would cost more than sums."""

    def __init__(self, owned: Mapping[nn.Module, list[nn.Parameter]]) -> None:
        """`owned`: the parameters that each module owns itself; the buffer is made at the first `of`."""
        self._owned = owned
        self._views: dict[nn.Module, list[Tensor]] = {}
        self._address = 0

    def of(self, module: nn.Module) -> list[Tensor]:
        """A tensor for a copy of each parameter that `module` owns, in their shapes, dtypes and order, not filled.

        All of them are views of one buffer, sized for the module that owns most bytes: while one module's copies are in
        use, another one's must not be asked for.
        """
        if not self._views:
            sizes = {m: [-(-p.nbytes // ALIGNMENT) * ALIGNMENT for p in own] for m, own in self._owned.items()}
            device = next((p.device for own in self._owned.values() for p in own), None)
            buffer = torch.empty(max(map(sum, sizes.values())), dtype=torch.uint8, device=device)
            self._address = buffer.data_ptr()
            for m, own in self._owned.items():
                places = zip(accumulate(sizes[m], initial=0), own, strict=False)
                self._views[m] = [buffer[at:][: p.nbytes].view(p.dtype).view(p.shape) for at, p in places]
        return self._views[module]

    def apart(self, out: Any) -> Any:
        """A module's output (a tensor, or a structure of them), copied where it lies in the buffer.

        Such as a view of a table of positions: the next module's copies would overwrite it.
        """
        return self._apart(out) if isinstance(out, Tensor) else tree_map_only(Tensor, self._apart, out)

    def _apart(self, out: Tensor) -> Tensor:
        """`out`, copied if its memory is the buffer."""
        return out.clone() if self._address and out.untyped_storage().data_ptr() == self._address else out
