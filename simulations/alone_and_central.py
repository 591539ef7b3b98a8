"""What a federation is worth: every client by itself, and all rows in one place, beside the loss of a run.

    alone     the run again for each client as its only one: its rows, its rank, its steps
    central   the run again with one client that owns all rows, and takes as many a step as all clients together

Both are federations of one with the run's strategy, so that nothing differs but the rows. The quickstart ends with
them; a race has baselines for any run file (`baselines.py`), with budgets and curves.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

from fedft.client.received_state import Memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.privacy.tables import Robust
from fedft.server import open_run
from fedft.simulations import workplace as runs
from fedft.training import evaluate


def losses(config: RunConfig) -> dict[str, float]:
    """What `alone` and `central` give, by name: the mean over clients, each on its own held-out rows.

    They work side by side in two processes, as long as the run did without its evaluations, and leave nothing on the
    disk: more threads in one process would gain less, and much less where something else is at work.

    Args:
        config: of the run, in which every client is asked in every round and has held-out rows.
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = [pool.submit(train, config) for train in (alone, central)]
        return {name: loss for f in found for name, loss in f.result().items()}


def alone(config: RunConfig) -> dict[str, float]:
    """`alone`, the mean loss of the clients' models on everybody's rows, and `own`, of each on its own client's."""
    place, ranks = runs.workplace(config), config.ranks()
    found = {}
    for i, name in enumerate(sorted(place.clients, key=str.encode)):
        own = replace(place.config, clients=replace(config.clients, rank=ranks[i % len(ranks)]))
        found[name] = _losses(replace(place, config=own), place.clients[name])
    everybody = fmean(loss for of_model in found.values() for loss in of_model.values())
    return {"alone": everybody, "own": fmean(of_model[name] for name, of_model in found.items())}


def central(config: RunConfig) -> dict[str, float]:
    """`central`, the loss on everybody's rows of the model that has learnt from all of them, at the largest rank."""
    place = runs.workplace(config)
    local = replace(config.local, batch_size=config.local.batch_size * len(place.clients))
    config = replace(place.config, local=local, clients=replace(config.clients, rank=max(config.ranks())))
    anyone = next(iter(place.clients.values()))
    owner = replace(anyone, name="central", train_rows=[r for c in place.clients.values() for r in c.train_rows])
    return {"central": fmean(_losses(replace(place, config=config), owner).values())}


def _losses(place: runs.Workplace, owner: Client) -> dict[str, float]:
    """Loss of the model that one client trains, by the client on whose held-out rows it is."""
    config = replace(place.config, robust=Robust())  # of one there is nothing to weigh
    clients = {owner.name: replace(owner, config=config, memory=Memory(), test_rows=[])}
    with TemporaryDirectory() as folder:
        run = open_run.fresh(config, place.recipe, place.here, Path(folder), runs.whose(clients))
        place.stand(run.loop(runs.local_post(clients)).run(clients))
    return {
        n: evaluate.measure(place.handle, place.base, c.test_rows, config.eval)["loss"]
        for n, c in place.clients.items()
    }
