"""The two contenders of a race that need no federation.

    local     every client of the panel trains alone, for the rounds in which it would expect to be asked
    central   one client owns all rows, and takes in a round the steps of the whole cohort

Both are measured on everybody's held-out rows. They send nothing, so a budget of bytes does not bind them; of steps
they take the rounds of the federation; of seconds, a client that trains alone has its share.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fedft.client.received_state import Memory
from fedft.client.train import Client
from fedft.config import Codecs, RunConfig, budget_of
from fedft.contract import State
from fedft.errors import ConfigError
from fedft.privacy.tables import OF_RECORDS, Privacy, Robust
from fedft.reports import run_result
from fedft.server import budget, open_run
from fedft.server import cohort as sampling
from fedft.simulations import workplace as runs
from fedft.training import evaluate
from fedft.training.metrics.loss import of_tokens, over_clients

NO_ROWS = "no client has held-out rows to measure on; see [data] holdout and test"
Tell = Callable[[float, Mapping[str, Any]], None]


def result(label: str, config: RunConfig, folder: Path, tell: Tell) -> dict[str, Any] | None:
    """The result, as `run_result.result` has it, of baseline `local` or `central`; None if its loss is not finite.

    Args:
        config: of the race, with one LoRA rank.
        folder: for its states, empty.
        tell: hears how far it is, from 0 to 1, and of each state that was measured.
    """
    place = runs.workplace(by_itself(config))
    config = place.config
    panel = sampling.panel(list(place.clients), config.eval.clients, config.server.seed)
    cohort = min(config.clients.per_round or len(place.clients), len(place.clients))
    config = _bounded(config, len(place.clients) if label == "local" else 1)
    config = replace(config, eval=replace(config.eval, exactness=False, prompts=[]))  # nobody reads these texts
    if label == "local":
        return _local(replace(place, config=config), panel, cohort, folder, tell)
    return _central(replace(place, config=config), panel, cohort, folder, tell)


def by_itself(config: RunConfig) -> RunConfig:
    """The config of clients that send nothing, to nobody: no codec, no robust or secure sum, no noise on updates.

    Noise that hides a whole client from the others would be all that one client alone learns. Records stay hidden.
    """
    hides_records = config.privacy.mode in OF_RECORDS
    privacy = replace(config.privacy, secagg="off") if hides_records else Privacy()
    return replace(config, codec=Codecs(), robust=Robust(), privacy=privacy)


def _bounded(config: RunConfig, sharers: int) -> RunConfig:
    """The config whose budget is one for clients that train by themselves."""
    server = config.server
    if server.budget is None:
        return config
    kind, most = budget_of(server.budget)
    if kind == "seconds":
        return replace(config, server=replace(server, budget=f"seconds={most / sharers!r}"))
    rounds = max(1, min(server.rounds, int(most // config.local.steps))) if kind == "steps" else server.rounds
    return replace(config, server=replace(server, rounds=rounds, budget=None))


def _local(place: runs.Workplace, panel: Sequence[str], cohort: int, folder: Path, tell: Tell) -> dict[str, Any] | None:
    """Mean over the clients of the panel. Its rounds are those of the federation, its steps are a client's own.

    Every model is measured on everybody's rows, but under `clients` stands each one's loss on its own.
    """
    config, share = place.config, cohort / len(place.clients)
    rounds = max(1, round(config.server.rounds * share))
    every = max(1, round(config.eval.every * share))
    server = replace(config.server, rounds=rounds)
    place = replace(place, config=replace(config, server=server, eval=replace(config.eval, every=every)))
    found, own = [], {}
    for i, name in enumerate(panel):

        def of_this(share: float, line: Mapping[str, Any], i: int = i, name: str = name) -> None:
            tell((i + share) / len(panel), {**line, "client": name})

        lines = _train_and_measure(place, {name: place.clients[name]}, panel, folder / str(i), of_this)
        if (of_client := run_result.result(lines, config.local.steps)) is None:
            return None
        found.append(of_client)
        own[name] = of_client["clients"].get(name)
    for r in found:
        r["rounds"] = _federated(r["rounds"], share)
        for point in r["curve"]:
            point["version"] = _federated(point["version"], share)
    total = run_result.mean(found)
    for of in (total, *total["curve"]):
        of["work"] *= len(place.clients)  # what it would take all of them
    return {**total, "clients": {name: loss for name, loss in own.items() if loss is not None}}


def _federated(turns: int, share: float) -> int:
    """Rounds after which a client expects to have been asked so often."""
    return round(turns / share)


def _central(
    place: runs.Workplace, panel: Sequence[str], cohort: int, folder: Path, tell: Tell
) -> dict[str, Any] | None:
    config, steps = place.config, place.config.local.steps * cohort
    whole = replace(config, local=replace(config.local, steps=steps), clients=replace(config.clients, per_round=None))
    rows = [row for c in place.clients.values() for row in c.train_rows]
    anyone = next(iter(place.clients.values()))
    held_out = anyone.test_rows[:1]
    if config.server.patience is not None:  # which goes by the engine's own evaluations: of everybody in turn
        each = zip_longest(*(place.clients[name].test_rows for name in panel))
        held_out = [row for of in each for row in of if row is not None]
    owner = replace(anyone, name="central", train_rows=rows, test_rows=held_out, config=whole)
    lines = _train_and_measure(replace(place, config=whole), {"central": owner}, panel, folder, tell)
    return run_result.result(lines, steps)


def _train_and_measure(
    place: runs.Workplace,
    owners: Mapping[str, Client],
    panel: Sequence[str],
    folder: Path,
    tell: Tell = lambda share, line: None,
) -> list[dict[str, Any]]:
    """Train `owners` with the engine; the lines of their states, measured on the held-out rows of the panel."""
    config = place.config
    clients = {name: replace(c, config=config, memory=Memory()) for name, c in owners.items()}
    lines: list[dict[str, Any]] = []

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind != "line":
            return
        # nothing travels, and what the engine does around one client's update is no part of training alone
        line = {k: info[k] for k in ("version", "round") if k in info}
        line["seconds"] = {"train": info["seconds"].get("train", 0.0)}
        if "evaluation" in info and (found := run.store.latest(recover=False)):
            line |= _measure(place, found[0], panel)
        lines.append(line)
        tell(budget.share(config, run.metrics.lines), line)

    run = open_run.fresh(config, place.recipe, place.here, folder, runs.whose(clients), observe)
    run.loop(runs.local_post(clients)).run(clients)
    if config.eval.rouge and (last := run.store.latest(recover=False)):
        lines[-1] |= _measure(place, last[0], panel, ["rouge_l"])
    return lines


def _measure(place: runs.Workplace, state: State, panel: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    """Metrics of a state on the held-out rows of the panel: means over its clients, and each one's `evaluation`."""
    place.stand(state)
    found = {
        name: evaluate.measure(place.handle, place.base, rows, place.config.eval, more)
        for name in panel
        if (rows := place.clients[name].test_rows)
    }
    if not found:
        raise ConfigError(NO_ROWS)
    if not all(math.isfinite(f["loss"]) for f in found.values()):
        return {}
    return {**over_clients(found.values(), of_tokens(place.config)), "evaluation": found}
