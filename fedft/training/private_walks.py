"""Zeroth-order steps that hide single records of a client: what is wrapped around a method's local steps, and refused.

The steps themselves are `zeroth_order.walk`'s, by the noisy slopes of `row_slopes`. All that follows a slope (the rule,
a pool or history of scalars, replay) costs nothing more.
"""

from dataclasses import dataclass, field, replace
from weakref import WeakSet

from torch import nn

from fedft.config import RunConfig
from fedft.contract import Data, Handle, LocalStep, Trained, Turn
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.training import objectives, per_example
from fedft.training.private_steps import noise_of


@dataclass(frozen=True)
class PrivateWalk:
    """Local steps (`fedft.contract.LocalStep`) as `walk` takes them, on clipped slopes of single rows with noise."""

    walk: LocalStep
    """Takes its steps by `zeroth_order.walk`."""
    _tested: "WeakSet[nn.Module]" = field(default_factory=WeakSet, compare=False, repr=False)
    """Models whose rows are known not to see each other."""

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps on the client's rows from the values in `handle`; the client's result.

        Its only metric is `steps`, as a loss would tell of the rows. Raises PlanRefused, `dp_selftest`, before the
        first step on a model where a row's loss depends on the other rows.
        """
        per_example.once(self._tested, per_example.losses_test, handle, data)
        trained = self.walk(handle, data, replace(turn, private=replace(noise_of(turn), in_steps=True)))
        if "loss" in trained.metrics:
            raise RuntimeError("steps without noise where noise was wanted: they are not zeroth_order.walk's")
        return trained


def private(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with local steps that hide records as `[privacy] mode = "zo-dp"` says; ConfigError if it cannot."""
    how = recipe.walk
    if how is None:
        raise ConfigError(
            f"[privacy] mode = 'zo-dp' is for zeroth-order steps, which {recipe.name} does not take; wanted fedkseed, "
            "mezo or zo_fedavg, or mode = 'example-dp' for steps by back-propagation"
        )
    refused = {
        "rule = 'conservative'": (how.rule == "conservative", "looks at the losses of records once more"),
        "objective = 'f1'": (how.objective == "f1", "is of all records together; 'loss' and 'accuracy' are of each"),
        "first_order_from": (how.first_order_from is not None, "trains layers by gradients of records without noise"),
        "coordinate": (how.coordinate, "moves a layer before the next is probed; blocks without it will do"),
    }
    for option, (said, why) in refused.items():
        if said:
            raise ConfigError(f"[strategy] {option} and [privacy] mode = 'zo-dp': it {why}")
    objectives.loss_of_rows(objectives.of(config))
    return replace(recipe, local=PrivateWalk(recipe.local))
