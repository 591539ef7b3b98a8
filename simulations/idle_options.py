"""What a run file asks for and cannot have any effect in this run, or costs much: said before round 1, a line each."""

from fedft.config import Local, RunConfig
from fedft.recipe import Recipe
from fedft.training.optimizers import named_in

MANY = 50  # clients whose evaluation takes long beside their training
FEW = 20  # clients that tell enough: above so many, and twice as many as train, a round may be mostly evaluation


def lines(config: RunConfig, recipe: Recipe, clients: int, measured: int) -> list[str]:
    """One line for each option without effect: its key, its value, and why.

    `together` that a model or strategy does not allow is said where clients train (`batched_turns`).

    Args:
        config: the run file.
        recipe: of its strategy.
        clients: how many there are.
        measured: how many of them have held-out rows.
    """
    model, local, server = config.model, config.local, config.server
    said = []
    if clients == 1:
        said.append(f"there is one client: this is training on its rows alone, {recipe.name} has nothing to average")
    if (most := config.clients.per_round) is not None and most > clients:
        said.append(f"[clients] per_round = {most}: there are {clients} clients, all are asked in every round")
    if (most := server.buffer) is not None and most > clients:
        said.append(f"[server] buffer = {most}: there are {clients} clients, every round waits for all of them")
    if (most := config.eval.clients) is not None and most > measured:
        said.append(f"[eval] clients = {most}: {measured} clients have held-out rows, all of them are measured")
    asked = min(config.clients.per_round or clients, clients)
    costly = measured >= MANY or measured > max(FEW, 2 * asked)
    if config.eval.clients is None and config.eval.every == 1 and costly:
        cheaper = f"clients = {FEW} or every = 5 would be cheaper"
        said.append(f"[eval]: all {measured} clients are measured after every round; {cheaper}")
    if not recipe.space.rank_free and (idle := len(config.ranks()) - clients) > 0:
        said.append(
            f"[clients] rank: the last {idle} of {len(config.ranks())} are nobody's, there are {clients} clients"
        )
    if local.momentum and (name := named_in(local)) != "sgd":
        said.append(f'[local] momentum = {local.momentum:g} has no effect on optimizer {name!r}; "sgd" has momentum')
    if local.epochs is not None and local.steps != Local().steps:
        said.append(f"[local] steps = {local.steps} has no effect: epochs = {local.epochs:g} says how many there are")
    if model.lora_dropout and recipe.space.of_base:
        said.append(
            f"[model] lora_dropout = {model.lora_dropout:g}: {recipe.name} trains no adapter, nothing is dropped"
        )
    workers = len(server.workers) if isinstance(server.workers, list) else server.workers or 0
    if workers > clients:
        said.append(f"[server] workers: there are {clients} clients, {workers - clients} of {workers} have none")
    kinds = server.workers if isinstance(server.workers, list) else [model.device]
    together = server.together or (1 if kinds == ["cpu"] * len(kinds) else "auto")
    if min(workers, clients) > 1 and together != 1:
        said.append(
            f"[server] together = {together!r}: clients share passes with those of their worker; another number "
            f"of workers than {min(workers, clients)} gives other last bits"
        )
    return said
