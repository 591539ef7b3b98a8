"""FedKSeed: every step of every client goes along one of K shared directions, so the model is w0 plus K scalars.

    client   j ~ uniform(K) or q (Pro);   g = (L(w + eps z_j) - L(w - eps z_j)) / (2 eps)
             w -= eta g z_j;   c_j += eta g                                 uploads the pairs (j, c_j) it drew
             or w -= sum_j s_j z_j, c += s by another rule                  momentum, adam, sign, conservative
    server   a += sum_k p_k c_k                                             broadcasts a
    model    w(a) = rho w0 - sum_j a_j z_j                                  replayed from w0 in one pass

Folding eta into a keeps replay right under learning-rate schedules. A step with weight decay lam scales w by
(1 - eta lam), hence rho and a by the same: one more scalar, and replay stays O(K). Tensors that `no_decay` spares have
a pool of their own, b, of the same steps without those factors: w0 - sum_j b_j z_j, 4 K and at most 4 tau bytes more.
Pro draws directions by how large their slopes were, q = softmax of the min-max-scaled mean |g|, and uploads the
statistics it needs (counted).

The other rules are those whose steps are sums of the K directions (`fedft.training.zeroth_rules`), so replay stays the
exact mean of the clients' weights; momentum and moments begin anew in every round, as functions of the pairs alone.
With `sparsity` all K directions are zero in the same entries, for the whole run.

`variant="reference"` is what the published code computes: raw slopes in the pool, the learning rate applied at replay
(so it must not change from round to round), and weight decay once per replayed non-zero seed.

A client has w0 beside the live weights (replay starts there), in the model's files where they hold it, and one module's
perturbed weights at a time; no third copy. In half precision the live weights are w0 for the whole run, and forward
passes see the rounded sum, made anew for every module (`fedft.models.perturbation`): the memory of inference and one
module. Works on all parameters (`space="full"`) or on LoRA's (`space="lora"`), whose w0 is the seeded A and B = 0.

Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
Kilobytes", ICML 2024, arXiv:2312.06353.
"""

from collections.abc import Sequence
from typing import Literal

from fedft.contract import Data, Handle, Trained, Turn
from fedft.randomness.directions import Directions
from fedft.recipe import Recipe
from fedft.strategies.parts.seed_pairs import SeedPairs
from fedft.strategies.parts.seed_pool import SeedPool
from fedft.strategies.parts.spaces import Space, kind_of
from fedft.strategies.parts.zeroth_options import takes_walk
from fedft.training import zeroth_order
from fedft.training.zeroth_rules import Walk


@takes_walk("resample", "blocks", "coordinate", "first_order_from", "first_order_factor", epsilon=5e-4)
def fedkseed(
    how: Walk,
    *,
    K: int = 4096,
    pro: bool = False,
    space: Space = "full",
    family: str = "hadamard",
    weight_decay: float = 0.0,
    no_decay: list[str] | None = None,
    sampling: Literal["with_replacement", "without_replacement"] = "with_replacement",
    table: Directions | None = None,
    draws: Sequence[int] | None = None,
) -> Recipe:
    """Zeroth-order federated tuning in K fixed directions.

    Args:
        K: number of shared directions, 1 to 4096 (larger pools need another layout of `hadamard`).
        pro: draw directions by their history (FedKSeed-Pro).
        space: all parameters, or the LoRA factors only.
        family: `hadamard` (default), `rademacher` or `gaussian`.
        weight_decay: lam >= 0, on every trained parameter; 0 for the rule `conservative`, which compares losses.
        no_decay: parts of names of parameters that do not decay; left out: none. Published code for such steps has
            ["bias", "layer_norm", "layernorm"], which misses Llama's last norm; "norm" has that, too. Needs float32.
        sampling: draw a round's directions `with_replacement` (the paper) or `without_replacement`, K at a time.
        table: K directions in place of the generator's (`independent.Table`), to check numbers by hand.
        draws: numbers 0 .. K - 1 of the directions of every turn's steps, in place of those drawn; for the same.
    """
    if no_decay and space == "lora":
        raise ValueError("no_decay names parameters of the base, none of which moves with space = 'lora'")
    pool = SeedPool(K, how, pro, family, weight_decay, sampling, table, tuple(no_decay or ()), tuple(draws or ()))
    pairs = SeedPairs(pool)

    def local(handle: Handle, data: Data, turn: Turn) -> Trained:
        """`plan.steps` steps along directions of the pool; uploads the sums c_j of those drawn."""
        z, draws = pool.directions(turn.run_seed), pool.draws(turn)
        spared = pool.spared(handle.parameters())
        walked = zeroth_order.walk(handle, data, turn, how, z, draws, weight_decay, spared)
        return Trained(pairs.of(walked), walked.metrics)

    return Recipe(
        "fedkseed",
        kind_of(space, along_directions=True),
        aggregate=pairs.aggregate,
        local=local,
        initial=pool.initial,
        server=pool.add,
        downlink=pool.downlink,
        download=pool.download,
        start=pool.replay,
        upload=pairs.spec,
        admit=pairs.admit,
        check=pool.check_run,
        summand=pairs.summand,
        from_sum=pairs.from_sum,
        reach=pairs.reach,
        upload_kind="numbers",
        linear=not pro,  # its statistics are sums over clients, not means
        ring_summable=not pro,
    )
