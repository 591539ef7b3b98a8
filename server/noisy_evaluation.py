"""What a deployment with noise at the server says of its sites' held-out rows: nothing, or means with noise.

    mean = (sum_k min(max(x_k, 0), R) + 4 z R xi) / n       x_k: what site k has measured, on the grid of sums
                                                            R: 10 for loss, 1 for accuracy
                                                            n: how many are asked, whoever answers

Each measure is a release of its own, charged before it is written: the public line has the means and nothing else.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping

from fedft.contract import State
from fedft.privacy import integer_noise
from fedft.privacy.clipping import UNIT
from fedft.privacy.schedule import MEASURE_NOISE
from fedft.server.evaluation_round import evaluate
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.guard import BudgetSpent
from fedft.server.private_sum import EVALUATION

log = logging.getLogger(__name__)

RANGES = {"loss": 10.0, "accuracy": 1.0}
"""The largest value of each measure that is released; what is above is cut, what is below 0 too."""


def measures(run: Federation) -> Collection[str]:
    """What is planned to be released of a run's evaluations, also of a simulation: its noise is that of sites."""
    return tuple(RANGES) if run.config.privacy.evaluate == "noisy" else ()


def measured(exchange: Exchange, state: State, barred: Collection[str]) -> dict[str, float]:
    """Means with noise by measure, and bytes as `PrivateFacts.of_evaluation` says; nothing where `[privacy] evaluate`
    says so.

    Nothing, too, where `max_epsilon` has no room for it, which is said. `barred`: who is not asked.
    """
    run, private = exchange.federation, exchange.federation.private
    if private is None or not measures(run) or not run.held_out:
        return {}
    found, traffic = evaluate(exchange, state, barred, rouge=False)
    digests = {c: _digest(said) for c, said in found.items()}
    size, z = min(run.config.eval.clients or len(run.held_out), len(run.held_out)), private.noise_multiplier
    means: dict[str, float] = {}
    try:
        for name, most in RANGES.items():
            charge = private.schedule.of_measure(state.version, name, z)
            stream = private.stream(state.version, EVALUATION, digests, charge)
            parts = (min(max(said.get(name, 0.0), 0.0), most) / most for said in found.values())
            whole = sum(round(x * UNIT) for x in parts) / UNIT
            noisy = integer_noise.noisy(stream, f"{EVALUATION} {name}", whole, MEASURE_NOISE * z) / size
            means[name] = most * min(max(noisy, 0.0), 1.0)
    except BudgetSpent as e:
        log.warning("version %d is not measured: %s", state.version, e)
        means = {}
    return {**means, **private.facts.of_evaluation(state.version, traffic, secret=private.schedule.secret)}


def _digest(said: Mapping[str, float]) -> str:
    """SHA-256 of what a site has measured, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(dict(said), sort_keys=True).encode()).hexdigest()
