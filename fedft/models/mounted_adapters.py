"""The adapters of one kind inside one model: one per shape, of which one is switched on.

Clients of unlike ranks take turns on one resident model. An adapter that was mounted for an earlier client of the same
shape is switched on again, since mounting takes longer than a step of a small model.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

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
        self._shape: Shape | None = None

    @property
    def live(self) -> Mounted:
        """The adapter that is switched on; one without tensors before the first `switch_to`."""
        return Mounted({}) if self._shape is None else self._by_shape[self._shape.key]

    def completed(self, shape: Shape, without: Collection[str] | None) -> Shape:
        """The shape of values that say nothing of the modules `without` an adapter, with those in it.

        None: those of the live adapter, where the shape is its own but for them; else none.
        """
        live = self._shape
        if without is None:
            same = live is not None and replace(live, ranks={m: r for m, r in live.ranks.items() if r}).key == shape.key
            without = live.without if live is not None and same else ()
        return replace(shape, ranks={**dict.fromkeys(without, 0), **shape.ranks}) if without else shape

    def switch_to(self, shape: Shape) -> bool:
        """Make the adapter of this shape the live one, mounting it the first time; whether another one was live.

        The values of an adapter that is mounted now are whatever its kind makes: they are to be written. Where the kind
        fails to mount it, the adapter that was live stays so.
        """
        if self._shape is not None and shape.key == self._shape.key:
            return False
        if self._shape is not None:
            self.live.switch(False)
        mounted = self._by_shape.get(shape.key) or self._mounted(shape)
        mounted.switch(True)
        self._by_shape.pop(shape.key, None)
        self._by_shape[shape.key], self._shape = mounted, shape  # the last one used is the last of the dict
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
            if self._shape is not None:
                self.live.switch(True)
            raise
