"""One evaluation: the panel measures a state on its held-out rows."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.server import cohort
from fedft.server.exchange import Traffic
from fedft.server.federation import Federation
from fedft.wire import messages

EVALUATION_BYTES = 8192  # an evaluation carries a header and no tensors


def evaluate(
    run: Federation, state: State, held_out: Mapping[str, int], barred: Collection[str], *, rouge: bool
) -> tuple[dict[str, dict[str, float]], Traffic]:
    """(metrics by client, what it cost).

    Args:
        held_out: rows by client; who has none is not asked.
        barred: clients that are not asked.
        rouge: also compare generated text, which takes its time.
    """
    found: dict[str, dict[str, float]] = {}

    def accept(client: str, payload: bytes) -> None:
        update = messages.decode_update(payload, {}, run.config.codec.up, max_bytes=EVALUATION_BYTES)
        if (update.run, update.round) != (run.job.run, state.version):
            raise RejectedUpdate("late", f"evaluation of round {update.round}, open is {state.version}")
        if "loss" not in update.metrics:
            raise RejectedUpdate("malformed", "an evaluation without a finite loss")
        found[client] = dict(update.metrics)

    able = [c for c in run.members if held_out.get(c) and c not in barred]
    panel = cohort.panel(able, run.config.eval.clients, run.job.seed)
    run.observe("evaluating", {"version": state.version, "asked": panel})
    extra = {"rouge": True} if rouge else {}
    plans = {c: replace(p, steps=0, evaluate=True, extra=extra) for c, p in run.plans(state, panel).items()}
    traffic, limits = Traffic(), dict.fromkeys(panel, EVALUATION_BYTES)
    run.talk.ask("evaluate", plans, state, accept, traffic, limits, run.until(run.quorum(len(panel))))
    return dict(sorted(found.items())), traffic
