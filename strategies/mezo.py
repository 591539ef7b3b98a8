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

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fedft import check
from fedft.arithmetic.tensors import Tensors
from fedft.config import RunConfig
from fedft.errors import RejectedUpdate
from fedft.randomness import families
from fedft.recipe import Data, Full, Handle, Layout, LoRA, Recipe, Trained, Turn, back_to_base
from fedft.strategies.parts import growing_history
from fedft.strategies.parts.fresh_walks import Fresh
from fedft.strategies.parts.zeroth_options import takes_walk
from fedft.training import zeroth_rules
from fedft.training.zeroth_rules import Walk
from fedft.update import Plan, TensorSpec, Update


@takes_walk("resample", "blocks", "coordinate", "first_order_from", "first_order_factor")
def mezo(how: Walk, *, space: Literal["full", "lora"] = "full", family: str = "hadamard") -> Recipe:
    """Zeroth-order federated tuning with a growing history of scalars.

    Args:
        space: all parameters, or the LoRA factors only.
        family: of directions: `hadamard` (default), `rademacher` or `gaussian`.
    """
    check.one_of(("full", "lora"), space=space)
    how.check_span(zeroth_rules.signs(families.make(family, 0, 1)))
    scalars = Scalars(how, family)
    return Recipe(
        "mezo",
        Full() if space == "full" else LoRA(),
        aggregate=scalars.aggregate,
        local=scalars.send,
        initial=growing_history.nothing_yet,
        server=growing_history.grow,
        downlink=growing_history.since,
        receive=growing_history.with_news,
        start=scalars.stand,
        upload=scalars.spec,
        admit=scalars.admit,
        check=scalars.check_run,
        upload_kind="numbers",
        linear=False,
        reveals_clients=True,
        downlink_is_increment=True,
    )


@dataclass(frozen=True)
class Scalars(Fresh):
    """What is sent of a walk, and what it amounts to."""

    replay: growing_history.Replay = field(default_factory=growing_history.Replay, compare=False)

    def check_run(self, config: RunConfig) -> None:
        """As many directions as there are, and rounds as fit a history."""
        self.check(config)
        growing_history.check_rounds(config.server.rounds, 2)

    def send(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Walk; uploads c and the seed of the directions."""
        walked = self.walk(handle, data, turn)
        seed = torch.tensor([self.seed(turn)]).view(torch.int32)
        return Trained({"scalar": walked.moved.float(), "seed": seed}, walked.metrics)

    def spec(self, layout: Layout, plan: Plan) -> dict[str, TensorSpec]:
        """One number per direction, and the seed."""
        return {"scalar": TensorSpec((plan.steps * self.how.samples,)), "seed": TensorSpec((2,), "int32")}

    def admit(self, delta: Tensors, plan: Plan) -> None:
        """sum |c_s| within what clipped steps can reach."""
        bound = plan.steps * self.how.reach() * plan.learning_rate
        if not zeroth_rules.within(delta["scalar"], bound):
            raise RejectedUpdate("scalar_bound", f"sum of |scalars| exceeds {bound:g}, what {plan.steps} steps reach")

    def aggregate(self, updates: Iterable[Update]) -> dict[str, Tensor]:
        """{scalar: p_k c, [clients, tau]; seed: [clients, 2]}, ascending by seed whatever the order of replies."""
        rows = [(_seed(u.delta["seed"]), u.num_examples, u.delta["scalar"].double()) for u in updates]
        if not rows:
            raise ValueError("expected at least one update, got none")
        rows.sort(key=lambda row: row[0])
        total = sum(n for _, n, _ in rows)
        c = torch.nn.utils.rnn.pad_sequence([n / total * x for _, n, x in rows], batch_first=True)
        seeds = torch.tensor([seed for seed, _, _ in rows])[:, None].view(torch.int32)
        return {"scalar": c.float(), "seed": seeds}

    def stand(self, handle: Handle, turn: Turn) -> None:
        """w := w0 - what all rounds add up to."""
        back_to_base(handle, turn)
        live = handle.parameters()

        def add(change: dict[str, Tensor], version: int, found: Tensors) -> None:
            for seed, c in zip(found["seed"], found["scalar"], strict=True):
                z = self.directions(_seed(seed), len(c), turn.run_seed)
                for name, x in change.items():
                    z.axpy_(x, name, -c)

        shapes = {n: tuple(p.shape) for n, p in live.items()}
        for name, x in self.replay.change(turn.held, shapes, turn.run_seed, add).items():
            live[name].data.add_(x.to(live[name].device))


def _seed(words: Tensor) -> int:
    """The 63-bit seed in two words of 32 bits."""
    return int(words.contiguous().view(torch.int64)) & ((1 << 63) - 1)
