"""model-best/ of a run: the model of the state that `[eval] best` names, written at the end beside the last one."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fedft.reports import spent_privacy
from fedft.server import best_state, run_outputs

if TYPE_CHECKING:
    from fedft.server.open_run import OpenRun

log = logging.getLogger(__name__)


def write(run: "OpenRun", stand: Callable[[], None], clients: int, seconds: float) -> dict[str, Any]:
    """Write the model of the best state where the run keeps one; what the summary says of it.

    Nothing is written where the state is no more, or `[audit] gate` bounds what a model may leak: it judges the last
    one.

    Args:
        run: that has ended.
        stand: sets the resident model to the last state, as it is left.
        clients: the number of those that could take part.
        seconds: since this process opened the run.
    """
    config, lines, here = run.config, run.metrics.lines, run.here
    if (best := best_state.best(config, lines)) is None:
        if (name := best_state.measure(config)) is not None:
            log.warning("no state is the best: no evaluation of the run has a number %r", name)
        return {}
    state = None if config.audit.gate else run.store.state(best[0])
    if state is None:
        why = "[audit] gate judges the last model only" if config.audit.gate else "it was not kept at the time"
        log.warning("%s/ is not written, the state of round %d: %s", best_state.KEPT, best[0], why)
    else:
        run_outputs.set_model_to(config, run.recipe, here.layout, here.handle, state)
        until = [line for line in lines if line["version"] <= best[0]]
        summary = run_outputs.summary_of(config, here.base, clients, state, until, seconds)
        # which state is the best was learned from all lines, and all that they have cost
        spent = spent_privacy.spent(config.privacy, lines)
        facts = replace(run_outputs.facts_of(config, until, summary), spent=spent)
        run_outputs.write_model(run.folder, config, here.base, here.handle, facts, best_state.KEPT)
        stand()
    return best_state.summary(config, lines, state is not None)
