"""The adapters of one kind inside one model: one per shape, of which one is switched on.

Clients of unlike ranks take turns on one resident model. An adapter that was mounted for an earlier client of the same
shape is switched on again, since mounting takes longer than a step of a small model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fedft.contract import Kind, Layout, Mounted, Settings
from fedft.update import Shape

MOST_SHAPES = 4  # adapters of unlike shapes that stay in the model; the one used longest ago goes


class MountedAdapters:
    """The adapters that a kind has put into a model, and which of them is live."""

    def __init__(self, model: nn.Module, layout: Layout, kind: Kind, settings: Settings) -> None:
        """No adapter yet; see `fedft.contract.Kind.mount` for the arguments."""
        self._model, self._layout, self._kind, self._settings = model, layout, kind, settings
        self._by_shape: dict[str, Mounted] = {}
        """By `Shape.key`, in order of last use."""
        self._key: str | None = None

    @property
    def live(self) -> Mounted:
        """The adapter that is switched on; one without tensors before the first `switch_to`."""
        return Mounted({}) if self._key is None else self._by_shape[self._key]

    def switch_to(self, shape: Shape) -> bool:
        """Make the adapter of this shape the live one, mounting it the first time; whether another one was live.

        The values of an adapter that is mounted now are whatever its kind makes: they are to be written. Where the kind
        fails to mount it, the adapter that was live stays so.
        """
        if shape.key == self._key:
            return False
        if self._key is not None:
            self.live.switch(False)
        mounted = self._by_shape.get(shape.key) or self._mounted(shape)
        mounted.switch(True)
        self._by_shape.pop(shape.key, None)
        self._by_shape[shape.key], self._key = mounted, shape.key  # the last one used is the last of the dict
        for unused in list(self._by_shape)[:-MOST_SHAPES]:
            self._by_shape.pop(unused).remove()
        return True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the live adapter does nothing; what asked for gradients before asks for them again afterwards."""
        asking = [(p, p.requires_grad) for p in self.live.parameters.values()]
        self.live.switch(False)
        try:
            yield
        finally:
            self.live.switch(True)  # peft lets every factor ask
            for parameter, asks in asking:
                parameter.requires_grad_(asks)

    def _mounted(self, shape: Shape) -> Mounted:
        """A new adapter of this shape."""
        try:
            return self._kind.mount(self._model, self._layout, shape, self._settings)
        except BaseException:
            if self._key is not None:
                self.live.switch(True)
            raise
