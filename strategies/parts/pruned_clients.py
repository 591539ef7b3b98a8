"""The server's memory of what each client has pruned, and states cut to it.

drawer   `kept.<client>` uint16 [ceil(groups / 16)], a bit for each group that the client still has (`Kept.words`); of
         clients that have all there is none
         `part.<module>` int32 [6], which rows or columns of the module's weight belong to which groups, see `written`
plan     `kept` of its client comes with the plan, also for one that has lost its own; left out while it has pruned
         nothing
"""

import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.errors import RejectedUpdate
from fedft.pruning.groups import Groups, Part, Structure
from fedft.pruning.kept import Kept, everything, from_words
from fedft.update import Plan

OWNER = "fedspine"
"""Of the drawers: the server's, and each client's, in which it keeps its own `kept`."""
KEPT, OF, PART = "kept", "kept.", "part."
NO_GROUPS = Groups(())


def written(groups: Groups) -> dict[str, Tensor]:
    """Groups as tensors, int32: of each module first group, groups, width, blocks, is it rows, weights of one."""
    return {
        PART + part.module: torch.tensor(
            [place.start, s.size, part.width, part.blocks, part.side == "rows", s.weights], dtype=torch.int32
        )
        for s, place in groups.each()
        for part in s.parts
    }


def groups_in(drawer: Tensors) -> Groups:
    """The groups that `written` wrote into the drawer, without names of structures; none in an empty one."""
    parts: dict[int, list[Part]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for name in sorted(n for n in drawer if n.startswith(PART)):
        first, count, width, blocks, rows, weights = drawer[name].tolist()
        parts.setdefault(first, []).append(Part(name.removeprefix(PART), "rows" if rows else "columns", width, blocks))
        sizes[first] = count, weights
    return Groups(tuple(Structure(str(n), sizes[n][0], tuple(parts[n]), (), sizes[n][1]) for n in sorted(parts)))


def kept_of(groups: Groups, words: Tensor | None) -> Kept:
    """What words say is kept (`Kept.words`), whoever wrote them; None: everything.

    Bits behind the last group are not looked at, groups that have none are pruned.
    """
    return everything(groups) if words is None else from_words(groups, words)


def words_of(drawer: Tensors) -> dict[str, Tensor]:
    """What clients have kept, by client, of those who have pruned something."""
    return {n.removeprefix(OF): x for n, x in drawer.items() if n.startswith(OF)}


def ratios(drawer: Tensors) -> dict[str, float]:
    """The share of weights that each client has pruned, of those who have pruned something."""
    groups = groups_in(drawer)
    return {client: kept_of(groups, words).ratio for client, words in words_of(drawer).items()}


def check_kept(delta: Tensors, plan: Plan) -> None:
    """Raise RejectedUpdate where a client says that it has groups which it had pruned before; pruning is for good."""
    if not (said := delta.get(KEPT, torch.zeros(0))).numel() or (before := plan.tensors.get(KEPT)) is None:
        return
    if said.shape != before.shape or (said.numpy() & ~before.numpy()).any():
        raise RejectedUpdate("out_of_bounds", "kept has groups that were pruned before: what is pruned never returns")
