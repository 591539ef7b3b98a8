"""MeZO in a federation: fresh directions for every step of every client, and only the scalars travel.

    client   g = (L(w + eps z_s) - L(w - eps z_s)) / (2 eps);   w -= eta g z_s;   c_s = eta g        s = 1 .. tau
             uploads c, 4 tau bytes, and the 8-byte seed of its z_1 .. z_tau
    server   keeps (seed, p_k c) of every client and round                                           broadcasts the news
    model    w = w0 - sum_rounds sum_k p_k sum_s c_s z_s                     exactly the mean of the clients' weights

Seeds derive from the run, the client and the round; a client sends its own so that the others need not know who it is.
The history grows by tau + 2 numbers per client and round, and a newcomer replays all of it: `fedkseed` is what bounds
both. Other rules than the plain step are those whose steps are sums of the directions (`fedft.training.zeroth_rules`).
A skipped step has c_s = 0. There is no weight decay: the mean of decayed weights is no such sum.

Malladi, Gao, Nichani, Damian, Lee, Chen, Arora, "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023,
arXiv:2305.17333.
"""

from fedft.config import RunConfig
from fedft.randomness.independent import Table
from fedft.randomness.source import Source
from fedft.recipe import Handle, Recipe, Turn, back_to_base
from fedft.strategies.parts import growing_history
from fedft.strategies.parts.fresh_walks import Fresh
from fedft.strategies.parts.seeded_rows import rows, seed_of
from fedft.strategies.parts.spaces import Space, kind_of
from fedft.strategies.parts.zeroth_options import takes_walk
from fedft.training import zeroth_rules
from fedft.training.zeroth_rules import Walk


@takes_walk("resample", "blocks", "coordinate", "first_order_from", "first_order_factor")
def mezo(how: Walk, *, space: Space = "full", family: str = "hadamard", table: Table | None = None) -> Recipe:
    """Zeroth-order federated tuning with a growing history of scalars.

    Args:
        space: all parameters, or the LoRA factors only.
        family: of directions: `hadamard` (default), `rademacher` or `gaussian`.
        table: directions of the steps of every turn, the first one first, in place of the generator's
            (`independent.Table`), to check numbers by hand.
    """
    source = Source(family, table)
    how.check_span(zeroth_rules.signs(source.directions(0, 1)))
    walks, history = Fresh(how, source), growing_history.Replay()

    def check_run(config: RunConfig) -> None:
        walks.check(config)
        growing_history.check_rounds(config.server.rounds, tensors=2)

    def stand(handle: Handle, turn: Turn) -> None:
        """w := w0 - what all rounds add up to."""
        back_to_base(handle, turn)
        history.add_to(handle, turn, lambda change, version, told: walks.replay(change, told, turn.run_seed))

    return Recipe(
        "mezo",
        kind_of(space),
        aggregate=lambda updates: rows(sorted(updates, key=seed_of), "scalar"),  # whatever the order of replies
        local=walks.send,
        initial=growing_history.nothing_yet,
        server=growing_history.grow,
        downlink=growing_history.since,
        receive=growing_history.with_news,
        download=walks.download,
        start=stand,
        upload=walks.spec,
        admit=walks.admit,
        check=check_run,
        upload_kind="numbers",
        linear=False,
        reveals_clients=True,
        downlink_is_increment=True,
    )
