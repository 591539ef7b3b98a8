"""Updates that travel as their coordinates on random directions, block by block, and a model that is their history.

upload    `coordinates` float32 [sum_l K_l], the blocks in the order of `BlockSketch.blocks`
          `norms` float32 [blocks], |D_l| of the update, where they decide the next round's K_l
          `seed` int32 [2], where each client has directions of its own (`seeded_rows`)
state     a growing history (`growing_history`) of eta_g times the p_k-mean of them, or of every client's rows
model     w0 + sum over rounds of Z_l gamma_l, the same bits on every machine
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.errors import RejectedUpdate
from fedft.randomness import philox, sketch
from fedft.randomness.block_sketch import Block, BlockSketch, Drawn
from fedft.randomness.directions import Directions
from fedft.recipe import Full, Handle, Layout, LoRA, State, Trained, Turn
from fedft.strategies.parts import growing_history, seeded_rows
from fedft.strategies.parts.growing_history import Replay
from fedft.update import Download, Plan, Shape, TensorSpec, Update

Shapes = Mapping[str, tuple[int, ...]]
"""Of the tensors that are trained, by name, in the model's order."""


@dataclass(frozen=True)
class BlockCoordinates:
    """A way of sending changes (`fedft.compression.error_feedback.Lossy`), and the state and model it leads to."""

    sketch: BlockSketch
    seeds: str
    """`shared` by all clients and fresh in every round, `per_client`, or `fixed` for the run."""
    server_lr: float
    """eta_g: what is in the state, so that the model never depends on the configuration."""
    space: Full | LoRA
    _replay: Replay = field(default_factory=Replay, compare=False)

    @property
    def own_seeds(self) -> bool:
        """Whether directions are their client's alone."""
        return self.seeds == "per_client"

    def initial(self, layout: Layout, rank: int, seed: int) -> dict[str, Tensor]:
        """Version 0: no rounds, the model is w0. Raises ValueError where K is too small for the model's blocks."""
        self.upload(layout, Plan("", 0, 0, rank=rank))
        return growing_history.nothing_yet(layout, rank, seed)

    def upload(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of an upload."""
        shapes = self._shapes(layout, plan.shape)
        counts = self._counts(None, self._blocks(shapes), shapes)
        spec = {"coordinates": TensorSpec((sum(counts),))}
        if self.sketch.adaptive:
            spec["norms"] = TensorSpec((len(counts),))
        return {**spec, seeded_rows.SEED: seeded_rows.SPEC} if self.own_seeds else spec

    def download(self, layout: Layout, plan: Plan) -> Download:
        """Rounds of coordinates, of one mean or of every client, and of norms as their bits."""
        spec = self.upload(layout, plan)
        if self.own_seeds:
            spec |= seeded_rows.spec_of_round("coordinates", spec["coordinates"].shape[0])
        if "norms" in spec:
            spec["norms"] = replace(spec["norms"], dtype="int32")
        return growing_history.download(spec, plan)

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The upload of the changes D_l, and as a metric `largest_move`, the largest |Z gamma_l| / |w_l| of a block.

        Raises FloatingPointError where the changes are not finite.
        """
        shapes = self._shapes(handle.layout, turn.plan.shape)
        drawn = self._drawn(shapes, turn)
        norms = torch.tensor([math.hypot(*(sketch.size(changes[n]) for n in block)) for block, _ in drawn])
        if not torch.isfinite(norms).all():
            raise FloatingPointError("the update is not finite")
        gammas = self.sketch.coordinates(drawn, changes, norms, turn.seed)
        sent = {"coordinates": torch.cat(gammas)}
        if self.sketch.adaptive:
            sent["norms"] = norms
        if self.own_seeds:
            sent[seeded_rows.SEED] = philox.key_as_words(_own_seed(turn))
        return Trained(sent, {"largest_move": self._largest_move(drawn, gammas, shapes, handle)})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """What the server makes of an upload: Z_l gamma_l, under the names and in the shapes of the changes.

        For blocks whose order does not depend on the model's, which is not known here.
        """
        found = {n: torch.zeros_like(x) for n, x in changes.items()}
        drawn = self._drawn({n: tuple(x.shape) for n, x in changes.items()}, turn)
        gammas = sent["coordinates"].split([z.count for _, z in drawn])
        for (block, z), gamma in zip(drawn, gammas, strict=True):
            for name in block:
                sketch.rebuild(z, name, gamma, found[name])
        return found

    def grow(self, state: State, change: Tensors) -> Tensors:
        """The state with one more round, times eta_g; norms as their bits: no codec may round what gives the K_l."""
        told = {**change, "coordinates": self.server_lr * change["coordinates"]}
        if "norms" in told:
            told["norms"] = told["norms"].view(torch.int32)
        return growing_history.grow(state, told)

    def start(self, handle: Handle, turn: Turn) -> None:
        """Put the model at w := w0 + all rounds; in the LoRA space w0 is the seeded A and B = 0."""
        before = {version + 1: told.get("norms") for version, told in growing_history.rounds(turn.held)}
        shapes = self._shapes(handle.layout, turn.plan.shape)
        blocks = self._blocks(shapes)

        def add(total: dict[str, Tensor], version: int, told: Tensors) -> None:
            counts = self._counts(before.get(version), blocks, shapes)
            if seeded_rows.SEED in told:
                rows = seeded_rows.each(told, "coordinates")
            else:
                rows = iter([(self._shared_seed(turn.run_seed, version), told["coordinates"])])
            for seed, row in rows:
                for block, gamma in zip(blocks, row.split(counts), strict=True):
                    self._rebuild(self.sketch.source.directions(seed, len(gamma)), gamma, {n: total[n] for n in block})

        change: Mapping[str, Tensor] = self._replay.change(turn.held, shapes, turn.run_seed, add)
        if not self.space.of_base:  # the frozen start that changes are of
            change = tensors.add(self.space.initial(handle.layout, turn.plan.shape, turn.run_seed), change)
        handle.write(change)

    def _shapes(self, layout: Layout, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The tensors' shapes in the model's order, where it is known of them all; else that of their names' bytes."""
        spec, place = self.space.spec(layout, shape), {n: i for i, n in enumerate(layout.order)}
        return {n: spec[n].shape for n in sorted(spec, key=lambda n: (place.get(n, len(place)), n.encode()))}

    def _blocks(self, shapes: Shapes) -> list[Block]:
        return self.sketch.blocks({n: math.prod(s) for n, s in shapes.items()})

    def _counts(self, norms: Tensor | None, blocks: Sequence[Block], shapes: Shapes) -> list[int]:
        """K_l by block; `norms` of the round before as the state holds them."""
        known = None if norms is None else norms.view(torch.float32).tolist()
        return self.sketch.counts(known, [sum(math.prod(shapes[n]) for n in block) for block in blocks])

    def _drawn(self, shapes: Shapes, turn: Turn) -> Drawn:
        """The blocks of a turn, each with its directions, by the norms of the round before."""
        told, blocks = growing_history.rounds(turn.held), self._blocks(shapes)
        counts = self._counts(told[-1][1].get("norms") if told else None, blocks, shapes)
        seed = _own_seed(turn) if self.own_seeds else self._shared_seed(turn.run_seed, turn.plan.version)
        return [(block, self.sketch.source.directions(seed, k)) for block, k in zip(blocks, counts, strict=True)]

    def _rebuild(self, z: Directions, gamma: Tensor, out: Tensors) -> None:
        """Add Z gamma of one block to its tensors, in place; eta_g is in gamma."""
        gamma = self.sketch.bounded(gamma, z, {n: x.numel() for n, x in out.items()}, self.server_lr)
        for name, x in out.items():
            sketch.rebuild(z, name, gamma, x)

    def _shared_seed(self, run_seed: int, version: int) -> int:
        return philox.derive(run_seed, "ferret", *([] if self.seeds == "fixed" else [version]))

    def _largest_move(self, drawn: Drawn, gammas: Sequence[Tensor], shapes: Shapes, handle: Handle) -> float:
        """The largest |eta_g Z gamma_l| / |w_l| of a tensor; 0 for those that are no weights of the base."""
        moves = [0.0]
        for (block, z), gamma in zip(drawn, gammas, strict=True):
            if self.space.of_base:
                self._rebuild(z, self.server_lr * gamma, moved := {n: torch.zeros(shapes[n]) for n in block})
                weights = {n: sketch.size(handle.parameters()[n]) for n in block}
                moves += [sketch.size(moved[n]) / weight for n, weight in weights.items() if weight]
        return max(moves)


def relayed(updates: Iterable[Update]) -> dict[str, Tensor]:
    """Every client's coordinates in rows, with its seed, and the p_k-mean of the norms where they travel."""
    sent = list(updates)
    if not any("norms" in u.delta for u in sent):
        return seeded_rows.rows(sent, "coordinates")
    norms = tensors.weighted_mean(({"norms": u.delta["norms"]}, u.num_examples) for u in sent)
    return {**seeded_rows.rows(sent, "coordinates"), **norms}


def admit(delta: Tensors, plan: Plan) -> None:
    """Raise RejectedUpdate for a negative norm."""
    if "norms" in delta and bool((delta["norms"] < 0).any()):
        raise RejectedUpdate("out_of_bounds", "a norm is negative")


def _own_seed(turn: Turn) -> int:
    return philox.derive(turn.seed, "ferret")
