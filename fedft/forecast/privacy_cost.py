"""What a run's privacy will cost and what its noise leaves of the signal: facts for `fedft plan` and a run's header."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.privacy import schedule
from fedft.privacy.schedule import Schedule
from fedft.privacy.secure_sum.integer_uploads import RING
from fedft.privacy.tables import OF_RECORDS
from fedft.recipe import Recipe, as_it_is, nothing
from fedft.update import Plan

ROWS = "how many records sites have is known to them alone"


def scheduled(
    config: RunConfig, rows: Mapping[str, int | None], drawn: Callable[[int], list[str]], *, deployed: bool = True
) -> Schedule:
    """The rounds of a run under its `[privacy]`.

    Args:
        config: the run file.
        rows: records by client; None: not known here.
        drawn: who is asked in a round, as the run's seed has it.
        deployed: whether a server may not simply look at held-out rows, as it does in a simulation.
    Raises:
        ConfigError: a delta at which giving away one client, or one record, would count as hidden.
    """
    said, known = config.privacy, {name: n for name, n in rows.items() if n}
    schedule.check_delta(said, len(rows), known)
    asked = min(config.clients.per_round or len(rows), len(rows))
    evaluations = 1 + -(-config.server.rounds // config.eval.every)
    return Schedule(
        said,
        config.server.rounds,
        len(rows),
        asked,
        schedule.most_turns(said.cohort, len(rows), asked, drawn),
        config.local.steps,
        config.local.batch_size,
        known,
        schedule.MEASURES * evaluations if said.evaluate == "noisy" else 0,
        deployed,
    )


def numbers(recipe: Recipe, layout: Layout, rank: int, mode: str) -> int:
    """d, how many numbers get noise: those that one client adds to a sum, or of a gradient where records are hidden.

    Args:
        recipe, layout: what is trained and sent.
        rank: the largest of any client.
        mode: as `[privacy] mode`.
    """
    plan = Plan("", 0, 0, rank=rank)
    if mode in OF_RECORDS:
        return sum(math.prod(t.shape) for t in recipe.space.spec(layout, plan.shape).values())
    spec = recipe.spec(layout, plan)
    if RING in spec:
        return spec[RING].shape[0] - 1  # the last is the loss
    if recipe.summand is as_it_is:
        return sum(math.prod(t.shape) for t in spec.values() if t.dtype == "float32")
    return sum(x.numel() for x in recipe.summand(nothing(spec), plan).values())


def cost(of: Schedule, numbers: int) -> dict[str, Any]:
    """The facts of a run under a mode, all of them plain values.

    mode, unit, clip, delta                of the run file; the unit that is protected in words
    noise_multiplier                       z, of the client with fewest rows; None: each has its own
    epsilon, epsilon_why                   of the whole run, of the client that pays most; None and why there is none
    after                                  [rounds, epsilon] after 1, half and all of them
    around                                 [z, epsilon] of half as much noise, this, and twice as much
    numbers, sigma                         d, and the noise on each number of a round's mean (in steps: of a gradient)
    noise_to_signal, verdict               see `fedft.privacy.schedule.noise_to_signal`
    ends                                   after which round `max_epsilon` ends the run; None: it does not
    by_rows                                where the unit is a record: what clients with so many of them pay
    secagg                                 as the run file says it
    colluding                              [clients, epsilon] against the server and so many clients who tell it their
                                           shares of the noise; None where it is not in shares

    Raises ConfigError where no noise is enough, or dp-accounting is not installed.
    """
    said = of.privacy
    found: dict[str, Any] = {
        "mode": said.mode, "unit": "record" if of.of_records else "client", "clip": said.clip, "delta": said.delta,
        "secagg": said.secagg, "epsilon": None, "epsilon_why": of.none, "noise_multiplier": said.noise_multiplier,
        "numbers": numbers, "sigma": None, "noise_to_signal": None, "verdict": "",
        "after": [], "around": [], "by_rows": [], "ends": None, "colluding": None,
    }  # fmt: skip
    if of.of_records and not of.rows:  # a server: each site finds its own noise for an epsilon
        return found | {"epsilon": said.epsilon, "epsilon_why": of.none or ("" if said.epsilon else ROWS)}
    clients = of.smallest or [0]
    z = of.noise(clients[0])
    ratio, root = schedule.noise_to_signal(of, z, numbers), 1.0 if said.mode == "zo-dp" else numbers**0.5
    found |= {"noise_multiplier": z, "noise_to_signal": ratio, "verdict": schedule.verdict(ratio)}
    found |= {"sigma": (said.clip or 0.0) * ratio / root}
    if of.none:
        return found
    found["after"] = [[t, of.epsilon(t, z, clients[0])] for t in sorted({1, max(1, of.rounds // 2), of.rounds})]
    found["around"] = [[x, of.epsilon(of.rounds, x, clients[0])] for x in (z / 2, z, 2 * z)]
    found["epsilon"] = found["after"][-1][1]
    if said.shared:
        found["colluding"] = list(of.against_colluding(z))
    if said.max_epsilon is not None and found["epsilon"] > said.max_epsilon:
        found["ends"] = of.fitting(said.max_epsilon, z)
    for rows in clients if of.of_records else ():
        own = z if rows == clients[0] else of.noise(rows)
        spent = of.epsilon(of.rounds, own, rows)
        found["by_rows"].append(
            {"rows": rows, "probability": of.probability(rows), "noise_multiplier": own, "epsilon": spent}
        )
        found["epsilon"] = max(found["epsilon"], spent)
    return found
