"""One evaluation: the panel measures a state on its held-out rows.

A client whose rank is below the state's holds a part of it only (HetLoRA, FlexLoRA). It measures that as ever, and then
the whole, which it is sent for this once: what is reported as loss is the loss of the model that the run leaves.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial

from fedft.carriers.interface import SHORT_ANSWER_BYTES
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.recipe import WHOLE, Recipe
from fedft.reports.columns import Column, declare
from fedft.reports.metric_log import Line
from fedft.server import cohort
from fedft.server.exchange import Exchange
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.update import Plan, Shape
from fedft.wire import messages

OWN_LOSS = declare(Column("own_loss", "own loss", better="lower"))
OWN_ACCURACY = declare(Column("own_accuracy", "own accuracy", better="higher"))
OWN = {"loss": OWN_LOSS.name, "accuracy": OWN_ACCURACY.name}
"""Numbers of a client's own part of the state, by the name of those of the whole."""


def evaluate(
    exchange: Exchange, state: State, barred: Collection[str], *, rouge: bool
) -> tuple[dict[str, dict[str, float]], Traffic]:
    """(metrics by client in the order of names, what it cost). Blocks until all have answered, or the deadline.

    Metrics are of the whole state. Where some client holds a part of it, OWN's are what each has at its own rank.
    The panel is `[eval] clients` of those with held-out rows, the same ones in every round. A client that does not
    answer, or without a finite loss, is missing in the result and stands among the refused of the cost. Sites of secure
    sums are not asked: what one of them measures would be its own, see `summed_evaluation`.

    Args:
        exchange: with the run's clients.
        state: that is measured.
        barred: clients that are not asked.
        rouge: also compare generated text, which takes its time.
    """
    federation = exchange.federation

    def accept(found: dict[str, dict[str, float]], came: Came) -> None:
        update = messages.decode_update(came.payload, {}, federation.config.codec.up, max_bytes=SHORT_ANSWER_BYTES)
        if (update.run, update.round) != (federation.job.run, state.version):
            raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
        if "loss" not in update.metrics:
            raise RejectedUpdate("malformed", "an evaluation without a finite loss")
        found[came.client] = dict(update.metrics)
        federation.observe("measured", {"version": state.version, "client": came.client})

    if federation.deployed and federation.config.privacy.secagg != "off":
        return {}, Traffic()
    size, held_out = federation.config.eval.clients, federation.held_out
    able = [c for c in federation.still(federation.members) if held_out.get(c) and c not in barred]
    founders = [c for c in able if federation.membership.is_founder(c)]
    enough = size is not None and len(founders) >= size  # who joins does not change the panel
    panel = cohort.panel(founders if enough else able, size, federation.job.seed)
    terms = federation.until_measured(panel).to_dict()
    federation.observe("evaluating", {"version": state.version, "asked": panel, **terms})
    extra = {"rouge": True} if rouge else {}
    plans = {c: replace(p, steps=0, evaluate=True, extra=extra) for c, p in federation.plans(state, panel).items()}
    whole = _of_the_whole(exchange, plans)
    plans |= {c: replace(plans[c], extra={}) for c in whole}  # text is generated once
    traffic = Traffic()

    def measured(asked: Mapping[str, Plan]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        limits = dict.fromkeys(asked, SHORT_ANSWER_BYTES)

        def until() -> Until:
            return federation.until_measured(federation.still(asked))

        exchange.ask("evaluate", asked, lambda version: state, partial(accept, found), traffic, limits, until)
        return found

    found = measured(plans)
    if whole:
        at_own_rank = {c: {OWN[n]: m[n] for n in OWN if n in m} for c, m in found.items()}
        at_full_rank = {c: m for c, m in found.items() if c not in whole} | measured(whole)
        found = {c: at_full_rank.get(c, {}) | at_own_rank.get(c, {}) for c in at_full_rank.keys() | at_own_rank.keys()}
    return dict(sorted(found.items())), traffic


def brought(recipe: Recipe, state: State, lines: Sequence[Line]) -> dict[str, tuple[int, str]]:
    """Version and label of a state by client, of those whom its evaluation, if it was finished, has brought there.

    No notes have that, which are durable before a state is evaluated: with it a run that was killed sends what it would
    have sent. `lines` are those of metrics.jsonl.
    """
    if recipe.evaluation_has_own_state:
        return {}
    measured = [c for line in lines if line["version"] == state.version for c in line.get("evaluation", ())]
    return dict.fromkeys(measured, (state.version, state.label))


def _of_the_whole(exchange: Exchange, plans: Mapping[str, Plan]) -> dict[str, Plan]:
    """The plans by which clients that hold a part of the state measure all of it; none where all hold all of it."""
    federation = exchange.federation
    if not federation.recipe.cuts_the_state:
        return {}
    full = Shape(federation.rank)
    return {
        c: replace(p, rank=full.rank, ranks={}, extra={**p.extra, WHOLE: True})
        for c, p in plans.items()
        if p.shape.key != full.key
    }
