"""One evaluation: the panel measures a state on its held-out rows."""

from collections.abc import Collection
from dataclasses import replace

from fedft.carriers.interface import SHORT_ANSWER_BYTES
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.server import cohort
from fedft.server.exchange import Exchange
from fedft.server.traffic import Traffic
from fedft.wire import messages


def evaluate(
    exchange: Exchange, state: State, barred: Collection[str], *, rouge: bool
) -> tuple[dict[str, dict[str, float]], Traffic]:
    """(metrics by client in the order of names, what it cost). Blocks until all have answered, or the deadline.

    The panel is `[eval] clients` of those with held-out rows, the same ones in every round. A client that does not
    answer, or without a finite loss, is missing in the result and stands among the refused of the cost.

    Args:
        exchange: with the run's clients.
        state: that is measured.
        barred: clients that are not asked.
        rouge: also compare generated text, which takes its time.
    """
    federation = exchange.federation
    found: dict[str, dict[str, float]] = {}

    def accept(client: str, payload: bytes) -> None:
        update = messages.decode_update(payload, {}, federation.config.codec.up, max_bytes=SHORT_ANSWER_BYTES)
        if (update.run, update.round) != (federation.job.run, state.version):
            raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
        if "loss" not in update.metrics:
            raise RejectedUpdate("malformed", "an evaluation without a finite loss")
        found[client] = dict(update.metrics)

    able = [c for c in federation.members if federation.held_out.get(c) and c not in barred]
    panel = cohort.panel(able, federation.config.eval.clients, federation.job.seed)
    federation.observe("evaluating", {"version": state.version, "asked": panel})
    extra = {"rouge": True} if rouge else {}
    plans = {c: replace(p, steps=0, evaluate=True, extra=extra) for c, p in federation.plans(state, panel).items()}
    traffic, limits = Traffic(), dict.fromkeys(panel, SHORT_ANSWER_BYTES)
    exchange.ask("evaluate", plans, state, accept, traffic, limits, federation.until(federation.quorum(len(panel))))
    return dict(sorted(found.items())), traffic
