"""Base models that stay loaded between requests, for all runs and all servers of a site's process."""

import gc
import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fedft.config import RunConfig
from fedft.models import resident, tasks
from fedft.models.resident import Resident
from fedft.recipe import Recipe

log = logging.getLogger(__name__)


@dataclass
class _Loaded:
    """A base model, and who trains on it."""

    key: tuple[Any, ...]
    """What must be the same to share the model."""
    here: Resident
    users: dict[Hashable, Callable[[], None]] = field(default_factory=dict)
    """Lets go of the model, by user."""
    turn: Hashable = None
    """The user whose values are in it."""


@dataclass
class ResidentModels:
    """The base models that were used last, at most `most` of them: runs that can share one do. Used by one thread.

    A model that is not among them is loaded again when its run goes on: runs of unlike models that go on side by side
    take turns with the memory, at the price of loading in each turn.
    """

    most: int = 1
    _loaded: list[_Loaded] = field(default_factory=list)
    """The one that was used last at the end."""

    def of(
        self, config: RunConfig, recipe: Recipe, user: Hashable, let_go: Callable[[], None]
    ) -> tuple[Resident, Callable[[], None]]:
        """(the base model of a run with a handle on it, what to call before each turn of the user's on it).

        Args:
            config: of the run, as `fedft.models.resident.load` takes it, whose errors are raised.
            recipe: of the run.
            user: tells runs and sites from each other.
            let_go: called when the model is to be unloaded: nothing may refer to it then.
        """
        m, local = config.model, config.local
        how = (local.autocast, local.neftune_alpha, local.checkpointing, local.compile)
        learned = (local.objective, local.packing, *how)  # of a handle and its model
        seed = None if tasks.of(m.task).generates else config.server.seed  # of a head that is drawn
        key = (m, config.data.max_length, recipe.space, seed, learned)
        found = next((x for x in self._loaded if x.key == key), None)
        if found is None:
            self._make_room()  # before the next one is loaded: there may be room for no more
            found = _Loaded(key, resident.load(config, recipe))
            self._loaded.append(found)
        found.users[user] = let_go
        return found.here, partial(self._turn, found, user, config.local.threads)

    def _make_room(self) -> None:
        while len(self._loaded) >= self.most:
            for let_go in self._loaded.pop(0).users.values():
                let_go()
            log.info("a base model is unloaded: another one needs its place")
            gc.collect()  # models and their hooks refer to each other

    def _turn(self, loaded: _Loaded, user: Hashable, threads: int) -> None:
        """The model is the user's now: what another one's strategy changed beside what all strategies set is undone."""
        self._loaded.sort(key=lambda x: x is loaded)  # in their order, but for this one, which is the last
        torch.set_num_threads(threads)
        if loaded.turn != user:
            loaded.here.handle.reset()
            loaded.here.handle.set_base_change({}, "")
            loaded.turn = user
