"""What the server's own records would change in a round: the honest change that `[robust] rule = "fltrust"` goes by.

One turn more, from the state that the round's clients began at, with as many steps; the records are those of
`[robust] root`, encoded as clients' are. Nothing of it is sent or kept.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedft.aggregation.robust_weights import NoSum
from fedft.arithmetic import tensors
from fedft.config import Local, RunConfig
from fedft.contract import Turn
from fedft.data import client_datasets, packing
from fedft.data.batches import ClientRows
from fedft.data.row_counts import RowCounts
from fedft.models import device_arithmetic, own_draws
from fedft.models.resident import Resident
from fedft.randomness import philox
from fedft.recipe import Recipe
from fedft.server.guard import Sum
from fedft.update import Plan, Update

log = logging.getLogger(__name__)

ROOT = "root"  # where a client's name stands


@dataclass(frozen=True)
class RootUpdate:
    """The server as one more client of its own rows."""

    config: RunConfig
    recipe: Recipe
    here: Resident
    """The model that is trained; between rounds nobody relies on where it stands."""
    rows: Sequence[Any]
    """Encoded."""

    def of(self, of: Sum) -> tuple[Update, Plan]:
        """The update that a turn of this round on the server's rows gives, and its plan.

        Steps, rate and rank are those of the round's first client that counts. Raises NoSum where no step has a finite
        loss.
        """
        recipe, state, handle = self.recipe, of.state, self.here.handle
        plan = replace(of.plans[next(iter(of.weights))], chosen=(), have=None, have_label="", counted=None)
        plan = replace(plan, tensors={**plan.tensors, **recipe.downlink(state, None, plan)})
        held = recipe.receive(None, plan)
        local = replace(self.config.local, batch_size=plan.batch or self.config.local.batch_size)
        seed = philox.derive(self.config.server.seed, ROOT, plan.round)
        turn = Turn(plan, held, tensors.digest(held), local, self.config.server.seed, seed)
        recipe.start(handle, turn)
        try:
            with own_draws.from_seed(seed), device_arithmetic.in_one_order(local):
                delta = recipe.local(handle, self._data(local), turn).delta
        except FloatingPointError as e:
            raise NoSum(f"[robust] root: {e}") from e
        return Update(delta, 1, plan.round), replace(plan, tensors={})

    def _data(self, local: Local) -> ClientRows:
        collate = packing.collating(self.here.handle.objective, local, self.config.data, self.here.base.pad_id)
        return ClientRows(self.rows, local.batch_size, collate)


def root_update(config: RunConfig, recipe: Recipe, here: Resident) -> RootUpdate:
    """The server's part in a run file's root sums; what of its rows is cut or left out is said.

    Raises DataError where `[robust] root` cannot be read or has nothing to learn.
    """
    assert config.robust.root is not None
    counts = RowCounts()
    own = replace(config, data=replace(config.data, train=config.robust.root, test=None))
    parts: Mapping[str, Any] = {ROOT: (client_datasets.read(config.robust.root), [])}
    rows, _ = client_datasets.encode(parts, own, here.base, counts)[ROOT]
    counts.clients_without_test_rows.clear()  # nothing is measured on them
    for line in counts.lines(config.data.max_length, 1, config.data.max_prompt):
        log.warning("[robust] root: %s", line)
    return RootUpdate(config, recipe, here, rows)
