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

`variant="reference"` is what the published code computes: K seeds fixed for the run; per block each client picks
n_l = max(2, floor(K |D_l| / max |D|)) of them at random, sends a K x L table with zeros elsewhere, and scales by
d_l/n_l for the v above: one third of the update, so its server rates of 3 to 10 mean a third of that. Not copied: half
precision, blocks that share one stream, the silent clip to norm 10, tables weighted equally, the server's momentum.

A machine keeps the sum of the rounds beside the weights. `largest_move`, a metric, is the largest |Z gamma_l| / |w_l|
of one client's update: beyond a tenth the rates are too high for so few coordinates.

Shu, Hu, Ng, Low, Yu, "Ferret: Federated Full-Parameter Tuning at Scale for Large Language Models", ICML 2025,
arXiv:2409.06277.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.compression import codec_names
from fedft.compression.error_feedback import ErrorFeedback, Sent
from fedft.config import RunConfig
from fedft.errors import RejectedUpdate
from fedft.randomness import families, philox, sketch
from fedft.randomness.directions import Directions
from fedft.randomness.independent import Table
from fedft.recipe import Full, Handle, Layout, LoRA, Recipe, State, Trained, Turn, mean
from fedft.strategies.parts import growing_history
from fedft.strategies.parts.growing_history import Replay
from fedft.update import Plan, Shape, TensorSpec, Update

LEAVES_LESS = ("projection", "mmse", "lstsq")  # |D - Z gamma| < |D|


def ferret(
    *,
    K: int = 4096,
    scale: Literal["unbiased", "projection", "mmse", "norm", "lstsq"] = "unbiased",
    seeds: Literal["shared", "per_client", "fixed"] = "shared",
    server_lr: float = 1.0,
    allocation: Literal["norm", "error"] = "norm",
    error_feedback: bool = False,
    space: Literal["full", "lora"] = "full",
    family: str = "hadamard",
    variant: Literal["exact", "reference"] = "exact",
    table: Table | None = None,
) -> Recipe:
    """First-order federated tuning whose updates travel as a few thousand coordinates.

    Args:
        K: coordinates per round over all blocks, from 2 to 4096 in each; with variant = "reference" the number of the
            run's seeds, all of which the block that moved most uses.
        scale: `unbiased` (the paper), `projection`, `mmse` (least squared error), `norm` (as large as the update) or
            `lstsq` (the exact projection).
        seeds: `shared` by all clients and fresh in every round, `per_client` (the paper), or `fixed` for the run (the
            published code: what those directions cannot say is never said).
        server_lr: eta_g.
        allocation: K_l in proportion to |D_l| (`norm`, the paper's, all coordinates of one size), or to sqrt(d_l) |D_l|
            (`error`, the least total error of unbiased coordinates for blocks of unlike sizes).
        error_feedback: a client adds what its coordinates left out to its next update. The sum arrives about d/K rounds
            late, so it wants small steps. Needs scale = projection, mmse or lstsq.
        space: all parameters, or the LoRA factors only.
        family: `hadamard` (default), `rademacher` or `gaussian`.
        variant: `exact`, or `reference` for the published code's subsets, seeds and scale.
        table: directions of variance 1 in place of the generator's (`independent.Table`), to check numbers by hand; a
            block uses the first K_l of its own.
    """
    check.between(sketch.LEAST, 2**24, K=K)  # the seeds of a run, or the coordinates of a round over all blocks
    check.above(0, server_lr=server_lr)
    check.one_of(sketch.SCALES, scale=scale)
    check.one_of(("shared", "per_client", "fixed"), seeds=seeds)
    check.one_of(("norm", "error"), allocation=allocation)
    check.one_of(("full", "lora"), space=space)
    check.one_of(("exact", "reference"), variant=variant)
    check.one_of(families.FAMILIES, family=family)
    if error_feedback and (scale not in LEAVES_LESS or variant == "reference"):
        raise ValueError(
            f"error_feedback grows without bound with variant {variant!r}, scale {scale!r}, which leaves out more than "
            f"there was; wanted variant 'exact' and scale one of {', '.join(LEAVES_LESS)}"
        )
    if variant == "reference":
        check.between(sketch.LEAST, sketch.MOST, K=K)
        if scale != "unbiased" or seeds == "per_client":
            raise ValueError("variant 'reference' has its own scale, and seeds fixed for the run; leave both out")
        seeds = "fixed"
    if table is not None and table.count < (least := K if variant == "reference" else sketch.LEAST):
        raise ValueError(f"expected a table of at least {least} directions, got {table.count}")
    projection = Projection(
        K,
        scale,
        seeds,
        server_lr,
        allocation,
        family,
        variant,
        table,
        Full() if space == "full" else LoRA(),
    )
    shared = seeds != "per_client"
    return Recipe(
        "ferret",
        projection.space,
        aggregate=mean if shared else relayed,
        uploads=(ErrorFeedback(projection) if error_feedback else Sent(projection),),
        initial=projection.initial,
        server=projection.grow,
        downlink=growing_history.since,
        receive=growing_history.with_news,
        start=projection.start,
        upload=projection.upload,
        admit=admit,
        check=lambda config: _check(config, 2 if shared else 3, scale),
        upload_kind="numbers",
        linear=shared,
        ring_summable=shared,
        reveals_clients=not shared,
        keeps=error_feedback,
    )


def _check(config: RunConfig, tensors_per_round: int, scale: str) -> None:
    growing_history.check_rounds(config.server.rounds, tensors_per_round)
    for way, name in (("up", config.codec.up), ("down", config.codec.down)):
        # coordinates of large blocks are then small beside those of small ones, and int8 has one scale for all
        c = codec_names.parse(name)
        if scale != "unbiased" and (not c.linear or c.ring_summable):
            raise ValueError(f"[codec] {way} = {name!r} would round away the coordinates of large blocks; wanted fp16")


def relayed(updates: Iterable[Update]) -> dict[str, Tensor]:
    """Every client's p_k gamma and its seed, in rows, and the p_k-mean of the norms."""
    sent = [(u.delta, u.num_examples) for u in updates]
    total = sum(n for _, n in sent)
    norms = tensors.weighted_mean(({"norms": d["norms"]}, n) for d, n in sent)
    rows = [(d["coordinates"].double() * (n / total)).float() for d, n in sent]
    return {"coordinates": torch.stack(rows), "seed": torch.stack([d["seed"] for d, _ in sent]), **norms}


def admit(delta: Tensors, plan: Plan) -> None:
    """Norms are not negative."""
    if "norms" in delta and bool((delta["norms"] < 0).any()):
        raise RejectedUpdate("out_of_bounds", "a norm is negative")


@dataclass(frozen=True)
class Projection:
    """The coordinates, and what is done with them."""

    K: int
    scale: str
    seeds: str
    server_lr: float
    allocation: str
    family: str
    variant: str
    table: Table | None
    space: Full | LoRA
    replay: Replay = field(default_factory=Replay, compare=False)

    def shapes(self, layout: Layout, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The blocks, in the order of their coordinates."""
        spec = self.space.spec(layout, shape)
        return {n: spec[n].shape for n in sorted(spec, key=str.encode)}

    def counts(self, norms: Tensor | None, sizes: Sequence[int]) -> list[int]:
        """K_l by block; `norms` as the state holds them."""
        if self.variant == "reference":
            return [self.K] * len(sizes)
        weights = [math.sqrt(d) for d in sizes] if norms is None else norms.view(torch.float32).tolist()
        if self.allocation == "error":
            weights = [w * math.sqrt(d) for w, d in zip(weights, sizes, strict=True)]
        return sketch.allocate(weights, sizes, self.K, min(sketch.MOST, self.table.count if self.table else self.K))

    def directions(self, seed: int, name: str, count: int) -> Directions:
        """Z_l."""
        if self.table is not None:
            return Table({name: self.table.vectors[name][:count]})
        return families.make(self.family, seed, count)

    def seed(self, run_seed: int, version: int) -> int:
        """What all clients share."""
        return philox.derive(run_seed, "ferret", *([] if self.seeds == "fixed" else [version]))

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """No rounds: the model is w0. Raises ValueError where K is too small for the model's blocks."""
        self.upload(layout, Plan("", 0, 0, rank=rank))
        return growing_history.nothing_yet(layout, rank, seed)

    def upload(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """4 bytes per coordinate and, for the next round's budget, per block; 8 for a seed of one's own."""
        counts = self.counts(None, [math.prod(s) for s in self.shapes(layout, plan.shape).values()])
        spec = {"coordinates": TensorSpec((sum(counts),))}
        if self.variant == "exact":
            spec["norms"] = TensorSpec((len(counts),))
        return spec | ({"seed": TensorSpec((2,), "int32")} if self.seeds == "per_client" else {})

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The coordinates of the changes. Raises FloatingPointError where those are not finite."""
        norms = torch.tensor([sketch.size(changes[n]) for n in _blocks(changes)])
        if not torch.isfinite(norms).all():
            raise FloatingPointError("the update is not finite")
        rng, gammas, moves = torch.Generator().manual_seed(turn.seed), [], [0.0]
        for (name, z), norm in zip(self._drawn(changes, turn), norms.tolist(), strict=True):
            k = z.count
            gamma = sketch.coordinates(z, name, changes[name], self.scale, "table" if self.table else self.family)
            if self.variant == "reference":
                n = max(sketch.LEAST, int(k * norm / (float(norms.max()) or 1.0)))
                some = torch.zeros(k).index_fill_(0, torch.randperm(k, generator=rng)[:n], 1.0)
                gamma = gamma * some * (k / n / 3)
            gammas.append(gamma)
            if self.space.of_base and (weight := sketch.size(handle.parameters()[name])):
                sketch.rebuild(z, name, gamma, rebuilt := torch.zeros_like(changes[name]))
                moves.append(self.server_lr * sketch.size(rebuilt) / weight)
        sent = {"coordinates": torch.cat(gammas)}
        if self.variant == "exact":
            sent["norms"] = norms
        if self.seeds == "per_client":
            sent["seed"] = torch.tensor(philox.split_key(self._own_seed(turn))).to(torch.int32)
        return Trained(sent, {"largest_move": max(moves)})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """Z gamma."""
        found = {n: torch.zeros_like(changes[n]) for n in _blocks(changes)}
        drawn = self._drawn(changes, turn)
        gammas = sent["coordinates"].split([z.count for _, z in drawn])
        for (name, z), gamma in zip(drawn, gammas, strict=True):
            sketch.rebuild(z, name, gamma, found[name])
        return found

    def _drawn(self, changes: Tensors, turn: Turn) -> list[tuple[str, Directions]]:
        """Z_l of every block of a turn, by the norms of the round before."""
        told, blocks = growing_history.rounds(turn.held), _blocks(changes)
        counts = self.counts(told[-1][1].get("norms") if told else None, [changes[n].numel() for n in blocks])
        own = self.seeds == "per_client"
        seed = self._own_seed(turn) if own else self.seed(turn.run_seed, turn.plan.version)
        return [(n, self.directions(seed, n, k)) for n, k in zip(blocks, counts, strict=True)]

    @staticmethod
    def _own_seed(turn: Turn) -> int:
        return philox.derive(turn.seed, "ferret")

    def grow(self, state: State, change: Tensors) -> dict[str, Tensor]:
        """One more round, eta_g in it: the model never depends on the configuration."""
        told = {**change, "coordinates": self.server_lr * change["coordinates"]}
        if "norms" in told:
            told["norms"] = told["norms"].view(torch.int32)  # the budget follows from them: no codec may round them
        return growing_history.grow(state, told)

    def start(self, handle: Handle, turn: Turn) -> None:
        """w := w0 + all rounds; in the LoRA space w0 is the seeded A and B = 0."""
        before = {version + 1: told.get("norms") for version, told in growing_history.rounds(turn.held)}

        def add(total: dict[str, Tensor], version: int, told: Tensors) -> None:
            counts = self.counts(before.get(version), [x.numel() for x in total.values()])
            own = told["seed"].tolist() if "seed" in told else []
            seeds = [low & philox.MASK32 | (high & philox.MASK32) << 32 for low, high in own]
            rows = told["coordinates"].view(max(1, len(seeds)), -1)
            for seed, row in zip(seeds or [self.seed(turn.run_seed, version)], rows, strict=True):
                for (name, x), gamma in zip(total.items(), row.split(counts), strict=True):
                    sketch.rebuild(self.directions(seed, name, len(gamma)), name, gamma, x)

        shapes = self.shapes(handle.layout, turn.plan.shape)
        change: Mapping[str, Tensor] = self.replay.change(turn.held, shapes, turn.run_seed, add)
        if not self.space.of_base:  # the frozen start that changes are of
            change = tensors.add(self.space.initial(handle.layout, turn.plan.shape, turn.run_seed), change)
        handle.write(change)


def _blocks(changes: Tensors) -> list[str]:
    """Names in the order of their coordinates."""
    return sorted(changes, key=str.encode)
