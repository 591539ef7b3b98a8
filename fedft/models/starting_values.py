"""Where trained tensors stood when a turn began, without a copy of what can be found again.

A parameter of the base that stands at w0 + the change that it was last moved by is made of these two when it is asked
for; every other tensor is a copy. In full fine-tuning that saves a copy of all weights while a client trains.
"""

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor


class StartingValues(Mapping[str, Tensor]):
    """Tensors by name as `Handle.read` gave them when this was made; some are computed anew at every access."""

    def __init__(self, values: Mapping[str, Tensor | Callable[[], Tensor]]) -> None:
        """`values`: tensors, or functions that give them."""
        self._values = values

    def __getitem__(self, name: str) -> Tensor:
        """The tensor's values at that time: float32 on the CPU, not to be changed."""
        found = self._values[name]
        return found if isinstance(found, Tensor) else found()

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
