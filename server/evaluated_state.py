"""The line of a state with what its evaluation found: measured by sites in the open, under noise, or as one sum."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from fedft.contract import State
from fedft.server import by_bits
from fedft.server.evaluation_round import evaluate
from fedft.server.exchange import Exchange
from fedft.training.metrics.loss import of_tokens, over_clients

if TYPE_CHECKING:
    from fedft.server.masked_rounds import MaskedRounds


def evaluated(
    exchange: Exchange,
    masked: "MaskedRounds | None",
    state: State,
    line: Mapping[str, Any],
    barred: Collection[str],
    *,
    rouge: bool,
) -> tuple[dict[str, Any], set[str]]:
    """The line with what is said of the state, and the clients that contradicted an update of theirs meanwhile.

    Args:
        exchange: with the run's clients.
        masked: hides what each has measured where that is summed; None: nothing does.
        state: that is measured.
        line: of the state, as far as it is known.
        barred: clients that are not asked.
        rouge: whether texts are generated and compared.
    """
    run = exchange.federation
    if run.deployed and run.config.privacy.evaluate == "summed":
        from fedft.server import summed_evaluation

        said = summed_evaluation.measured(exchange, state, barred, masked)
        return {**line, **said, "evaluation": {}, "refused": [*line["refused"], *said["refused"]]}, set()
    if run.private is not None and run.deployed:
        from fedft.server import noisy_evaluation

        return _with_bytes(line, noisy_evaluation.measured(exchange, state, barred)), set()
    found, traffic = evaluate(exchange, state, barred, rouge=rouge)
    # refused evaluations are nobody's fault where the state is; a contradiction of an update is
    false = {r["client"] for r in traffic.refused if r["code"] == "equivocation"}
    outside = {"outside_epsilon": ["evaluation"]} if found and run.config.privacy.on else {}
    line = {
        **over_clients(found.values(), of_tokens(run.config)),
        **line,
        **by_bits.evaluated(line, found.values(), run.config.model),
        **outside,
        "evaluation": found,
        "refused": [*line["refused"], *traffic.refused],
    }
    if (private := run.private) is not None:
        secret = private.schedule.secret
        return _with_bytes(line, private.facts.of_evaluation(state.version, traffic, secret=secret)), false
    return {**line, "evaluation_bytes": {"up": traffic.up, "down": traffic.down, "needed": traffic.needed}}, false


def _with_bytes(line: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a round with what is `said` of its evaluation; bytes of both are added up."""
    return {**line, **said, **{k: line.get(k, 0) + said.get(k, 0) for k in ("bytes_up", "bytes_down")}}
