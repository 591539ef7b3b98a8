"""A method with control variates beside its tensors: "control.<name>" beside every <name> that clients train.

They stand in the state from version 0 on, where all are 0, come down with it, go up with every change, and are seen by
nothing of the method itself. What they are and do: `fedft.training.control_variates`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.contract import Handle, Layout, Next, Turn
from fedft.recipe import Recipe
from fedft.strategies.parts.wrapping import with_term
from fedft.training.control_variates import (
    CONTROL,
    Corrected,
    as_controls,
    norm,
    warn_unless_exact,
    without_controls,
)
from fedft.training.first_order import gradient_steps
from fedft.update import Download, Plan, TensorSpec


def with_controls(inner: Recipe) -> Recipe:
    """The recipe with corrected gradients, whose clients send twice as much; aggregate and server are still its own.

    Raises ValueError, in the name of scaffold, where the control variates of the recipe's clients would mean nothing.
    """
    _check_one_x(inner)

    def initial(layout: Layout, rank: int, seed: int) -> Next:
        first = inner.first_state(layout, rank, seed)
        if any(n.startswith(CONTROL) for n in first.tensors):
            raise ValueError(f"names of the model begin with {CONTROL!r}, which is where control variates are kept")
        sent = inner.spec(layout, Plan("", 0, 0, rank=rank))
        zeros: dict[str, Tensor] = {n: torch.zeros_like(first.tensors[n]) for n in sent}
        return Next({**first.tensors, **as_controls(zeros)}, first.own)

    def start(handle: Handle, turn: Turn) -> None:
        inner.start(handle, replace(turn, held=without_controls(turn.held)))

    def upload(layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        return {p + n: s for n, s in inner.spec(layout, plan).items() for p in ("", CONTROL)}

    def download(layout: Layout, plan: Plan) -> Download | None:
        of_x = inner.downloads(layout, plan)
        return None if of_x is None else lambda name: of_x(name.removeprefix(CONTROL))

    def admit(delta: Tensors, plan: Plan) -> None:
        inner.admit(without_controls(delta), plan)

    def rules(config: RunConfig) -> None:
        inner.check(config)
        warn_unless_exact(config.local, clips=config.privacy.mode != "example-dp")

    return replace(
        with_term(inner, Corrected(), "scaffold"),
        initial=initial,
        start=start,
        upload=upload,
        download=download,
        admit=admit,
        check=rules,
        norm=norm,
        keeps=True,
        unlike_modules=False,  # what does not learn in a round has no gradient: see `_check_one_x`
    )


def _check_one_x(recipe: Recipe) -> None:
    """Raise ValueError unless every client of the recipe descends from one x by gradients of the same parameters."""
    no, steps = f"scaffold cannot be on {recipe.name}: ", gradient_steps(recipe.local)
    if steps is None:
        raise ValueError(no + "it corrects gradients, and these local steps are not plain back-propagation")
    if recipe.with_server is not None:
        raise ValueError(no + "one set of control variates is enough")
    if steps.send != "delta" or recipe.unlike_ranks or recipe.upload_kind != "changes":
        raise ValueError(no + "its clients send values, numbers, or have unlike ranks; controls need one space for all")
    if steps.trains is not None:
        raise ValueError(no + "what does not learn in a round has no gradient, and its control variates would be stale")
    if not recipe.averages or recipe.personal:
        raise ValueError(no + "the server must move one x, the same for all, by the mean of the changes")
    if not recipe.sends_whole_state:
        raise ValueError(no + "every client must receive the whole state")
