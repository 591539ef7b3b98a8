"""Reads of parameters by a forward pass, and the refusal of those that go past the modules that own them.

Perturbed values are swapped into a module while it runs. Code that takes another module's weight and computes with it
itself (some models do so with embeddings) would see that weight unperturbed, silently.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class WatchedReads(TorchDispatchMode):
    """A context that notes which parameters the torch operations inside read, by the address of their memory."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """`parameters` by canonical name; those without elements have no address and are not watched."""
        super().__init__()
        self.found: set[str] = set()
        """Names of the parameters that have been read."""
        self._names = {p.data_ptr(): n for n, p in parameters.items() if p.numel()}
        self._on = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._on:
            addresses = (x.data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
            self.found |= {self._names[a] for a in addresses if a in self._names}
        return func(*args, **(kwargs or {}))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, operations are not watched."""
        self._on = False
        try:
            yield
        finally:
            self._on = True

    def refuse(self) -> None:
        """Raise NotImplementedError naming the parameters that have been read, if there are any."""
        if self.found:
            raise NotImplementedError(
                f"this model reads {', '.join(sorted(self.found))} past the layers that own them, so they cannot "
                f"stay fixed; use [model] dtype = 'float32'"
            )
