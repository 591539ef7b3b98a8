"""FedSpine: clients prune heads and feed-forward channels while LoRA repairs, each at a ratio and rank of its own.

    server   ratio_k, r_k                                                     by predicted time and a bandit per client
    down     rank-r_k approximation of B A, without the rows and columns that k has pruned; what k has kept
    client   prune the least important groups | train, by turns               masks; up to ratio_k, for good
    up       A_k, B_k in the same coordinates; what k keeps, if that changed
    server   D* = sum_k diag(omega_k) B_k A_k,  omega_k(a) = p_k [k keeps a] / sum_j p_j [j keeps a]    (`kept_entries`)
             D* = U S V^T;   rank r:  A = (V^T)[:r],  B = (U S)[:, :r]                                    (as FlexLoRA)

What nobody of a round keeps keeps the state's value. Clients have models of unlike shapes: each evaluates its own
(`personal`). With ratio 0 and one rank for all it is FlexLoRA, bit for bit.

Bytes, per matrix: r (kept rows + in) numbers each way where rows are pruned, r (out + kept columns) where columns are;
a bit per group down, from when the client has pruned something, and up in rounds in which it prunes.

Measured (a Llama of two layers of 64, 3 clients, 8 rounds of 20 steps, 40 % pruned; mean held-out loss and spread of 3
seeds): 4.110 (.010); FlexLoRA pruned behind its last round 4.409 (.021), not pruned 3.973 (.013).

Yao, Xu, Xu, Liao, Xie, "Efficient Deployment of Large Language Models on Resource-constrained Devices", 2025,
arXiv:2501.02438. There is no public code, and only the abstract was read: what is known of the method (importance from
the adapter's gradients, pruning in turn with recovery, a bandit over ratio and rank, weighted aggregation of unlike
adapters) is defined here by us. Results are no reproduction.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor

from fedft import check
from fedft.aggregation import client_weights
from fedft.aggregation.server_optimizers import FactoredMomentum
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import split, to_names
from fedft.arithmetic.stacks import stack
from fedft.arithmetic.tensors import Tensors, weighted_mean
from fedft.config import RunConfig
from fedft.pruning.cut_adapters import cut, cut_shapes, scattered
from fedft.pruning.groups import adapted
from fedft.pruning.kept import Kept
from fedft.pruning.schedule import largest_ratio
from fedft.recipe import Layout, LoRA, Next, Plan, Recipe, Roster, State, Update, Work, cut_to_rank, product_norm
from fedft.strategies.flexlora import redistribute
from fedft.strategies.parts import pruned_clients
from fedft.strategies.parts.bandit import Box
from fedft.strategies.parts.kept_entries import Holding, completed, mean_of_kept
from fedft.strategies.parts.prune_and_train import PruneAndTrain
from fedft.strategies.parts.pruned_clients import KEPT, NO_GROUPS, OWNER
from fedft.strategies.parts.ratio_and_rank import REMEMBERED, Controller, Rule
from fedft.update import Download, Spec, TensorSpec

MARK = "\0"
"""Between a client and the name of a tensor: in neither of the two."""


def fedspine(
    *,
    ratio: float = 0.5,
    most: float = 0.1,
    ranks: list[int] | None = None,
    exploration: float = 0.1,
    finest: float = 0.2,
    discount: float = 1.0,
    weights: Literal["examples", "norm"] = "examples",
    variant: Rule = "filtered",
    mode: Literal["mask", "slice"] = "mask",
) -> Recipe:
    """Pruning and LoRA by turns; a head, if there is one, is averaged and replaced.

    Args:
        ratio: share of the weights in heads and feed-forward channels that every client has pruned in the end; 0:
            nothing is pruned.
        most: the largest increment of a client's share in one round; the bandit chooses from 0 to it.
        ranks: that the bandit chooses from, those not above the run file's rank for the client; left out: 4, 8, 16 and
            32; an empty list: the run file's, and no choice.
        exploration: c, weight of the bandit's uncertainty.
        finest: theta, size of an arm's interval below which the bandit makes it no finer.
        discount: g, what an observation of the round before counts; below 1 the bandit forgets, and learns worse.
        weights: p_k by `examples`, or by the `norm` of the client's B A, module by module (HetLoRA's).
        variant: `filtered`: arms that would be slower than the run's pace are left out; `reference`: all arms, and late
            clients are paid less; `random` arms; `fixed`: `most` and the largest rank in every round, for comparison.
        mode: `mask`: pruned groups are switched off, which any base allows and saves no time; `slice`: during a turn
            they are cut out of a base in floats.
    """
    check.above(0, most=most, finest=finest, discount=discount)
    check.between(0, 1, ratio=ratio, most=most, discount=discount)
    check.at_least(0, exploration=exploration)
    check.one_of(("examples", "norm"), weights=weights)
    check.one_of(get_args(Rule), variant=variant)
    check.one_of(("mask", "slice"), mode=mode)
    ladder = tuple(sorted({4, 8, 16, 32} if ranks is None else {*ranks}))
    if any(r < 1 for r in ladder):
        raise ValueError(f"expected ranks of at least 1, got {ranks}")
    box = Box(most, ladder, discount, exploration, finest)
    spine = Spine(Controller(box, ratio, variant, mode == "slice"), weights == "norm")
    turns = PruneAndTrain(prunes=ratio > 0, slices=mode == "slice")
    return Recipe(
        "fedspine",
        LoRA(),
        aggregate=collected,
        local=turns,
        initial=spine.initial,
        server=spine.server,
        downlink=spine.downlink,
        download=spine.download,
        start=turns.start,
        upload=spine.upload,
        admit=pruned_clients.check_kept,
        plan=spine.plan,
        check=partial(check_run, mode),
        remembers=REMEMBERED,
        linear=False,
        weighs_by_examples=weights == "examples",
        unlike_ranks=True,
        bases="any",
        upload_kind="values",
        norm=product_norm,
        cuts_to_rank=True,
        keeps=ratio > 0,
        personal=ratio > 0,
    )


def check_run(mode: str, config: RunConfig) -> None:
    """Raise ValueError where a run file's base cannot be cut."""
    if mode == "slice" and config.model.base_bits is not None:
        raise ValueError(
            f"mode = 'slice' cuts matrices of floats, and [model] base_bits = {config.model.base_bits} packs them; "
            "wanted mode = 'mask'"
        )


@dataclass(frozen=True)
class Spine:
    """The parts of the recipe that stand at the server, and what travels."""

    controller: Controller
    by_norm: bool

    @property
    def prunes(self) -> bool:
        """Whether clients are to prune anything."""
        return self.controller.target > 0

    def initial(self, layout: Layout, rank: int, seed: int) -> Next:
        """Version 0, and the model's groups in the server's drawer.

        Raises ConfigError for a model whose groups are not known, or where some have no adapter; ValueError for a ratio
        that is never reached, since something of each layer stays.
        """
        groups = adapted(layout.groups, layout.modules) if self.prunes else NO_GROUPS
        if self.prunes and self.controller.target > (most := largest_ratio(groups)):
            raise ValueError(f"ratio = {self.controller.target:g}, but of this model at most {most:.3g} is ever pruned")
        return Next(LoRA().start(layout, rank, seed), {OWNER: pruned_clients.written(groups)})

    def plan(self, state: State, roster: Roster) -> dict[str, Work]:
        """Ratio and rank of every client, and what it has kept, where it has pruned something."""
        drawer = state.drawer(OWNER)
        works, words = self.controller.plan(roster, pruned_clients.ratios(drawer)), pruned_clients.words_of(drawer)
        return {c: replace(w, tensors={KEPT: words[c]}) if c in words else w for c, w in works.items()}

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """The factors cut to the client's rank, and to what it has kept."""
        groups = pruned_clients.groups_in(state.drawer(OWNER))
        return cut(cut_to_rank(state, have, plan), pruned_clients.kept_of(groups, plan.tensors.get(KEPT)))

    def download(self, layout: Layout, plan: Plan) -> Download:
        """Factors of the plan's rank or smaller, in either direction, and a word for sixteen groups."""
        found = {n: replace(t, at_most=True) for n, t in LoRA().spec(layout, plan.shape).items()}
        return ({**found, KEPT: self._words(layout)} if self.prunes else found).get

    def upload(self, layout: Layout, plan: Plan) -> Spec:
        """The factors in coordinates of what the client has at the turn's start, a head, and "kept", maybe empty."""
        spec = LoRA().spec(layout, plan.shape)
        if not self.prunes:
            return spec
        kept = pruned_clients.kept_of(layout.groups or NO_GROUPS, plan.tensors.get(KEPT))
        shapes = cut_shapes({n: t.shape for n, t in spec.items()}, kept)
        return {**{n: TensorSpec(s) for n, s in shapes.items()}, KEPT: replace(self._words(layout), at_most=True)}

    def _words(self, layout: Layout) -> TensorSpec:
        return TensorSpec((-(-(layout.groups or NO_GROUPS).size // 16),), "uint16")

    def server(self, state: State, change: Tensors) -> Next:
        """The pairs at the state's rank of D*, and what every client keeps now."""
        drawer = state.drawer(OWNER)
        groups, words = pruned_clients.groups_in(drawer), pruned_clients.words_of(drawer)
        kept, pairs = dict[str, Kept](), dict[str, dict[str, LowRank]]()
        examples, others = dict[str, float](), list[tuple[Tensors, float]]()
        for client, (delta, n) in parted(change).items():
            had = pruned_clients.kept_of(groups, words.get(client))
            said = delta.pop(KEPT, None)
            kept[client] = had & pruned_clients.kept_of(groups, said) if said is not None and said.numel() else had
            of_client, rest = split(scattered(delta, had))
            for m, d in of_client.items():
                pairs.setdefault(m, {})[client] = d
            examples[client] = n
            others.append((rest, n))
        before = split(state.tensors)[0]
        mean = {m: self._mean(m, of, examples, kept, before[m]) for m, of in pairs.items()}
        made = redistribute(0.0, False, FactoredMomentum(1.0, 0.0), state, to_names(mean) | weighted_mean(others))
        now = {pruned_clients.OF + c: own.words() for c, own in kept.items() if not own.bits.all()}
        return Next(made.tensors, {OWNER: {**drawer, **now}})

    def _mean(
        self, module: str, of: Mapping[str, LowRank], examples: Mapping[str, float], kept: Mapping[str, Kept],
        state: LowRank,
    ) -> LowRank:  # fmt: skip
        """D* of one module. `of`: B A by client."""
        items = [(d, examples[c]) for c, d in of.items()]
        shares = client_weights.by_norm(items) if self.by_norm else [n for _, n in items]
        groups = next(iter(kept.values())).groups
        if module not in groups.parts:
            return stack([(d, w) for (d, _), w in zip(items, shares, strict=True)])
        held = [~kept[c].lost(module) for c in of]
        parts = [Holding(d, w, k) for d, w, k in zip(of.values(), shares, held, strict=True)]
        side = groups.parts[module][0].side
        return completed(mean_of_kept(parts, side), held, state, side)


def collected(updates: Iterable[Update]) -> dict[str, Tensor]:
    """All that clients sent, by "client\\0name", and how many examples each has: the mean needs the server's drawer.

    Raises ValueError where there is no update.
    """
    found: dict[str, Tensor] = {}
    for k, u in enumerate(updates):
        client = u.client or str(k)
        found |= {client + MARK + name: x for name, x in u.delta.items()}
        found[client + MARK] = torch.tensor(float(u.num_examples), dtype=torch.float64)
    if not found:
        raise ValueError("expected at least one update, got none")
    return found


def parted(change: Tensors) -> dict[str, tuple[dict[str, Tensor], float]]:
    """What `collected` put together: tensors and number of examples by client."""
    examples = {n.partition(MARK)[0]: float(x) for n, x in change.items() if n.endswith(MARK)}
    tensors = {client: dict[str, Tensor]() for client in examples}
    for key, x in change.items():
        client, _, name = key.partition(MARK)
        if name:
            tensors[client][name] = x
    return {client: (tensors[client], n) for client, n in examples.items()}
