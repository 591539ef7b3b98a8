"""Updates that travel as their coordinates on random directions, block by block, and a model that is their history.

upload    `coordinates` float32 [sum_l K_l], the blocks (tensors) in the order of their names' bytes
          `norms` float32 [blocks], |D_l| of the update, where they decide the next round's K_l
          `seed` int32 [2], where each client has directions of its own (`seeded_rows`)
state     a growing history (`growing_history`) of eta_g times the p_k-mean of them, or of every client's rows
model     w0 + sum over rounds of Z_l gamma_l, the same bits on every machine
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.errors import RejectedUpdate
from fedft.randomness import philox, sketch
from fedft.randomness.block_sketch import BlockSketch, Drawn
from fedft.recipe import Full, Handle, Layout, LoRA, State, Trained, Turn
from fedft.strategies.parts import growing_history, seeded_rows
from fedft.strategies.parts.growing_history import Replay
from fedft.update import Plan, Shape, TensorSpec, Update


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
        counts = self.sketch.counts(None, [math.prod(s) for s in self._shapes(layout, plan.shape).values()])
        spec = {"coordinates": TensorSpec((sum(counts),))}
        if self.sketch.adaptive:
            spec["norms"] = TensorSpec((len(counts),))
        return {**spec, seeded_rows.SEED: seeded_rows.SPEC} if self.own_seeds else spec

    def send(self, changes: Tensors, turn: Turn, handle: Handle) -> Trained:
        """The upload of the changes D_l, and as a metric `largest_move`, the largest |Z gamma_l| / |w_l| of a block.

        Raises FloatingPointError where the changes are not finite.
        """
        norms = torch.tensor([sketch.size(changes[n]) for n in _names(changes)])
        if not torch.isfinite(norms).all():
            raise FloatingPointError("the update is not finite")
        drawn = self._drawn(changes, turn)
        gammas = self.sketch.coordinates(drawn, changes, norms, turn.seed)
        sent = {"coordinates": torch.cat(gammas)}
        if self.sketch.adaptive:
            sent["norms"] = norms
        if self.own_seeds:
            sent[seeded_rows.SEED] = philox.key_as_words(_own_seed(turn))
        return Trained(sent, {"largest_move": self._largest_move(drawn, gammas, changes, handle)})

    def read(self, sent: Tensors, changes: Tensors, turn: Turn) -> dict[str, Tensor]:
        """What the server makes of an upload: Z_l gamma_l, under the names and in the shapes of the changes."""
        found = {n: torch.zeros_like(changes[n]) for n in _names(changes)}
        drawn = self._drawn(changes, turn)
        gammas = sent["coordinates"].split([z.count for _, z in drawn])
        for (name, z), gamma in zip(drawn, gammas, strict=True):
            sketch.rebuild(z, name, gamma, found[name])
        return found

    def grow(self, state: State, change: Tensors) -> dict[str, Tensor]:
        """The state with one more round, times eta_g; norms as their bits: no codec may round what gives the K_l."""
        told = {**change, "coordinates": self.server_lr * change["coordinates"]}
        if "norms" in told:
            told["norms"] = told["norms"].view(torch.int32)
        return growing_history.grow(state, told)

    def start(self, handle: Handle, turn: Turn) -> None:
        """Put the model at w := w0 + all rounds; in the LoRA space w0 is the seeded A and B = 0."""
        before = {version + 1: told.get("norms") for version, told in growing_history.rounds(turn.held)}

        def add(total: dict[str, Tensor], version: int, told: Tensors) -> None:
            counts = self._counts(before.get(version), list(total.values()))
            if seeded_rows.SEED in told:
                rows = seeded_rows.each(told, "coordinates")
            else:
                rows = iter([(self._shared_seed(turn.run_seed, version), told["coordinates"])])
            for seed, row in rows:
                for (name, x), gamma in zip(total.items(), row.split(counts), strict=True):
                    sketch.rebuild(self.sketch.source.directions(seed, name, len(gamma)), name, gamma, x)

        shapes = self._shapes(handle.layout, turn.plan.shape)
        change: Mapping[str, Tensor] = self._replay.change(turn.held, shapes, turn.run_seed, add)
        if not self.space.of_base:  # the frozen start that changes are of
            change = tensors.add(self.space.initial(handle.layout, turn.plan.shape, turn.run_seed), change)
        handle.write(change)

    def _shapes(self, layout: Layout, shape: Shape) -> dict[str, tuple[int, ...]]:
        """The blocks' shapes, in the order of their coordinates."""
        spec = self.space.spec(layout, shape)
        return {n: spec[n].shape for n in _names(spec)}

    def _counts(self, norms: Tensor | None, blocks: Sequence[Tensor]) -> list[int]:
        """K_l by block; `norms` of the round before as the state holds them."""
        known = None if norms is None else norms.view(torch.float32).tolist()
        return self.sketch.counts(known, [x.numel() for x in blocks])

    def _drawn(self, changes: Tensors, turn: Turn) -> Drawn:
        """The blocks of a turn, each with its directions, by the norms of the round before."""
        told, names = growing_history.rounds(turn.held), _names(changes)
        counts = self._counts(told[-1][1].get("norms") if told else None, [changes[n] for n in names])
        seed = _own_seed(turn) if self.own_seeds else self._shared_seed(turn.run_seed, turn.plan.version)
        return [(n, self.sketch.source.directions(seed, n, k)) for n, k in zip(names, counts, strict=True)]

    def _shared_seed(self, run_seed: int, version: int) -> int:
        return philox.derive(run_seed, "ferret", *([] if self.seeds == "fixed" else [version]))

    def _largest_move(self, drawn: Drawn, gammas: Sequence[Tensor], changes: Tensors, handle: Handle) -> float:
        """The largest |eta_g Z gamma_l| / |w_l|; 0 for blocks that are no weights of the base."""
        moves = [0.0]
        for (name, z), gamma in zip(drawn, gammas, strict=True):
            if self.space.of_base and (weight := sketch.size(handle.parameters()[name])):
                sketch.rebuild(z, name, gamma, rebuilt := torch.zeros_like(changes[name]))
                moves.append(self.server_lr * sketch.size(rebuilt) / weight)
        return max(moves)


def relayed(updates: Iterable[Update]) -> dict[str, Tensor]:
    """Every client's coordinates in rows, with its seed, and the p_k-mean of the norms."""
    sent = list(updates)
    norms = tensors.weighted_mean(({"norms": u.delta["norms"]}, u.num_examples) for u in sent)
    return {**seeded_rows.rows(sent, "coordinates"), **norms}


def admit(delta: Tensors, plan: Plan) -> None:
    """Raise RejectedUpdate for a negative norm."""
    if "norms" in delta and bool((delta["norms"] < 0).any()):
        raise RejectedUpdate("out_of_bounds", "a norm is negative")


def _own_seed(turn: Turn) -> int:
    return philox.derive(turn.seed, "ferret")


def _names(blocks: Iterable[str]) -> list[str]:
    """Names in the order of their coordinates: that of their UTF-8 bytes."""
    return sorted(blocks, key=str.encode)
