"""Ferret: ordinary local steps, then the update is sent as its coordinates on shared random directions, block by block.

    client   D_l = trained - received of block (tensor) l, d_l numbers, after any first-order steps
             gamma_l = (1 / K_l) Z_l^T D_l                      uploads these K_l numbers of each block, and |D_l|
    server   gamma_l = eta_g sum_k p_k gamma_l^(k)              broadcasts them: by linearity the mean of the updates
    model    w += Z_l gamma_l                                   so w = w0 + the rounds so far, on every machine

The columns z_j of Z_l have entries of variance 1 and come from a seed that is fresh in every round and shared by all.
The paper's are v = sqrt(rho) z, entries uniform on +-1/sqrt(d_l) for all practical purposes, rho = 1/(3 d_l), with
gamma = V^T D / (rho K): rho cancels in V gamma = (1/K) Z Z^T D. The budget: sum_l K_l = K, K_l in proportion to the
p_k-mean of the |D_l| of the round before (to sqrt(d_l) in the first), so that all coordinates are of like size.

Errors and the other scales: `fedft.randomness.sketch`. In short: the cosine of Z gamma and D is about sqrt(K/(K + d))
at every scale; unbiased coordinates carry noise of sqrt(d/K) |D|, so for K << d they want a server_lr of about K/d or a
smaller learning rate; projection, mmse and lstsq leave less than there was, and make small steps; norm makes steps as
large as the clients' own, whatever K is. The number of local steps does not enter.

The noise of clients on shared directions is (d/K) |sum_k p_k D_k|^2; if each has its own (`seeds="per_client"`, the
paper's) it is (d/K) sum_k p_k^2 |D_k|^2, for as many times the download as there are clients, who all are seen.

`variant="reference"` is what the published code computes (`fedft.randomness.block_sketch.Subsets`): K seeds fixed for
the run, of which each client picks some at random for each block, and one third of the update, so its server rates of 3
to 10 mean a third of that. Small tensors that are neighbours in the model are one block; clients count alike; and of
the mean no term gamma_j z_j of a block is longer than 10, before eta_g. The state has the coordinates before this clip.
Not copied: half precision, blocks that share one stream, updates that are not finite left out, the server's momentum
(the published script has none).

A machine keeps the sum of the rounds beside the weights, a large one in a temporary file. `largest_move`, a metric, is
the largest |Z gamma_l| / |w_l| of one client's update: beyond a tenth the rates are too high for so few coordinates.

Shu, Hu, Ng, Low, Yu, "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML 2025,
arXiv:2409.06277.
"""

from collections.abc import Sequence
from typing import Literal

from fedft import check
from fedft.aggregation.mean import mean, uniform_mean
from fedft.compression import codec_names
from fedft.compression.error_feedback import ErrorFeedback, Sent
from fedft.config import RunConfig
from fedft.randomness import sketch
from fedft.randomness.block_sketch import BlockSketch, Budget, Subsets
from fedft.randomness.independent import Table
from fedft.randomness.source import Source
from fedft.recipe import Recipe
from fedft.strategies.parts import growing_history
from fedft.strategies.parts.block_coordinates import BlockCoordinates, admit, relayed
from fedft.strategies.parts.spaces import Space, kind_of


def ferret(
    *,
    K: int = 4096,
    scale: Literal["unbiased", "projection", "mmse", "norm", "lstsq"] = "unbiased",
    seeds: Literal["shared", "per_client", "fixed"] = "shared",
    server_lr: float = 1.0,
    allocation: Literal["norm", "error", "size"] = "norm",
    error_feedback: bool = False,
    space: Space = "full",
    family: str = "hadamard",
    variant: Literal["exact", "reference"] = "exact",
    table: Table | None = None,
    draws: Sequence[int] | None = None,
) -> Recipe:
    """First-order federated tuning whose updates travel as a few thousand coordinates.

    Args:
        K: coordinates per round over all blocks, 2 to 2^24, and 2 to 4096 in each; with variant = "reference" the
            number of the run's seeds, 2 to 4096, all of which the block that moved most uses.
        scale: `unbiased` (the paper), `projection`, `mmse` (least squared error), `norm` (as large as the update) or
            `lstsq` (the exact projection).
        seeds: `shared` by all clients and fresh in every round, `per_client` (the paper), or `fixed` for the run (the
            published code: what those directions cannot say is never said).
        server_lr: eta_g > 0, factor on the mean update.
        allocation: K_l in proportion to |D_l| (`norm`, the paper's, all coordinates of one size), or to sqrt(d_l) |D_l|
            (`error`, the least total error of unbiased coordinates for blocks of unlike sizes), or in all rounds to
            sqrt(d_l) (`size`: no norm travels, as noise on the sum wants it).
        error_feedback: a client adds what its coordinates left out to its next update. The sum arrives about d/K rounds
            late, so it wants small steps. Needs scale = projection, mmse or lstsq.
        space: all parameters, or the LoRA factors only.
        family: `hadamard` (default), `rademacher` or `gaussian`.
        variant: `exact`, or `reference` for the published code's blocks, subsets, seeds, scale, weights and clip.
        table: directions of variance 1 in place of the generator's (`independent.Table`), to check numbers by hand; a
            block uses the first K_l of its own.
        draws: numbers of the K seeds as every block takes them, in place of a random order; of the reference only.
    """
    check.above(0, server_lr=server_lr)
    check.one_of(("shared", "per_client", "fixed"), seeds=seeds)
    check.one_of(("exact", "reference"), variant=variant)
    blocks: BlockSketch = Budget(K, scale, allocation, Source(family, table))
    if error_feedback and (scale not in sketch.LEAVES_LESS or variant == "reference"):
        raise ValueError(
            f"error_feedback grows without bound with variant {variant!r}, scale {scale!r}, which leaves out more than "
            f"there was; wanted variant 'exact' and scale one of {', '.join(sketch.LEAVES_LESS)}"
        )
    if variant == "reference":
        if scale != "unbiased" or seeds == "per_client":
            raise ValueError("variant 'reference' has its own scale, and seeds fixed for the run; leave both out")
        blocks, seeds = Subsets(K, blocks.source, tuple(draws or ())), "fixed"
    elif draws is not None:
        raise ValueError("draws are of variant 'reference'; all others use every direction")
    alike = scale == "unbiased" and allocation != "size"
    return _recipe(BlockCoordinates(blocks, seeds, server_lr, kind_of(space)), alike, error_feedback)


def _recipe(coordinates: BlockCoordinates, alike: bool, error_feedback: bool) -> Recipe:
    shared = not coordinates.own_seeds
    by_examples = isinstance(coordinates.sketch, Budget)
    return Recipe(
        "ferret",
        coordinates.space,
        aggregate=relayed if not shared else mean if by_examples else uniform_mean,
        uploads=(ErrorFeedback(coordinates) if error_feedback else Sent(coordinates),),
        initial=coordinates.initial,
        server=coordinates.grow,
        downlink=growing_history.since,
        receive=growing_history.with_news,
        download=coordinates.download,
        start=coordinates.start,
        upload=coordinates.upload,
        admit=admit,
        reach=_unknown,
        check=lambda config: _check(config, 2 if shared else 3, alike),
        upload_kind="numbers",
        linear=shared and by_examples,  # sums elsewhere are by examples
        ring_summable=shared and by_examples,
        reveals_clients=not shared,
        keeps=error_feedback,
    )


def _unknown(config: RunConfig, name: str) -> float:
    """Raise ValueError: coordinates have no bound that is known before they are."""
    raise ValueError("how large its coordinates are is not known beforehand: range has to say it")


def _check(config: RunConfig, tensors_per_round: int, alike: bool) -> None:
    """Raise ValueError for more rounds than a history holds, or a codec too coarse for coordinates of unlike sizes."""
    growing_history.check_rounds(config.server.rounds, tensors_per_round)
    for way, name in (("up", config.codec.up), ("down", config.codec.down)):
        # coordinates of large blocks are then small beside those of small ones, and int8 has one scale for all
        c = codec_names.parse(name)
        if not alike and (not c.linear or c.ring_summable):
            raise ValueError(f"[codec] {way} = {name!r} would round away the coordinates of large blocks; wanted fp16")
