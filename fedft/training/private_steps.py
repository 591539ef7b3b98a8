"""Local steps by back-propagation that hide single records of a client: DP-SGD, with any optimiser behind the noise.

    batch    every row with probability q                                  Poisson sampling; it may be empty
    g_i      gradient of row i's own loss                                  the mean over its own tokens
    gt       (sum_i g_i min(1, C / |g_i|) + z C xi) / B                    B: the expected size, whoever is in the batch
    then     terms change gt, the optimiser takes it                       nothing behind the noise costs anything

No step is left out, and none has another divisor: either would tell of the rows. A row whose gradient is not finite
counts as 0. `[local] max_grad_norm` is not looked at: C is in the same scale, the adapter's own, but of each row.
Noise, batches and what a model drops are of the turn's secret stream (`fedft.privacy.keyed_stream`), so a turn that is
done again after a crash is the same turn, byte for byte. Sum and noise are added in float64 and rounded to float32;
what last bits of floats may give away (Mironov, CCS 2012) is not in epsilon.

Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakSet

import torch
from torch import Tensor, nn

from fedft.config import RunConfig
from fedft.contract import Batch, Course, Data, Handle, Metrics, Private, Trained, Turn
from fedft.data import poisson_batches
from fedft.data.micro_batches import InPieces
from fedft.errors import ConfigError
from fedft.models import own_draws
from fedft.recipe import Recipe
from fedft.training import objectives, per_example
from fedft.training.first_order import FirstOrder, gradient_steps, in_memory, set_rate, settle
from fedft.training.objectives import loss_of_rows
from fedft.training.per_example import Gradients, Watch, clipped_sum


@dataclass(frozen=True)
class PrivateFirstOrder:
    """Local steps (`fedft.contract.LocalStep`) as `steps` takes them, on clipped gradients of rows with noise."""

    steps: FirstOrder
    _tested: "WeakSet[nn.Module]" = field(default_factory=WeakSet, compare=False, repr=False)
    """Models on which gradients of single rows are known to be right."""

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps on the client's rows from the values in `handle`; the client's result.

        Its only metric is `steps`, as a loss would tell of the rows. Raises PlanRefused, `dp_selftest`, before the
        first step on a model where gradients of single rows are not right, or not to be had.
        """
        private = noise_of(turn)
        per_example.once(self._tested, per_example.self_test, handle, data)
        # from a seed that others know they knew who is dropped of each row in a batch with and without a record: the
        # other rows' parts would differ, and the sum by more than C
        with own_draws.from_seed(int(private.stream.bits("dropout", "", 1))):
            return self.steps.taken(handle, poisson_batches.batches(data, turn, private), turn, descend)


def noise_of(turn: Turn) -> Private:
    """What the turn's noise goes by. Raises RuntimeError where there is none: nothing is trained without it."""
    if turn.private is None:
        raise RuntimeError("a private step in a turn without noise: Turn.private is None")
    return turn.private


def descend(
    handle: Handle,
    live: Mapping[str, nn.Parameter],
    batches: Iterator[Batch | None],
    turn: Turn,
    courses: Sequence[Course],
    optimizer: torch.optim.Optimizer,
) -> Metrics:
    """An optimiser step on `live` for every batch, None being one without rows; each of them is taken."""
    private = noise_of(turn)
    with Watch(handle, live) as watch:
        for step, batch in enumerate(batches):
            sums = {} if batch is None else _sums(watch, batch, live, private.clip)
            for name, parameter in live.items():
                parameter.grad = _noisy(sums.get(name), parameter, private, f"{step}/{name}", turn.local.batch_size)
            for course in courses:
                course.step()
            set_rate(optimizer, turn, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    settle(optimizer)
    return {"steps": float(turn.plan.steps)}


def _noisy(total: Tensor | None, like: Tensor, private: Private, name: str, batch_size: int) -> Tensor:
    """(sum + z C xi) / B, of the shape, dtype and device of `like`; the sum over no rows is None."""
    noise = private.noise_of_step(name, like.numel()).view(like.shape).to(like.device)
    return (noise if total is None else noise.add_(total)).div_(batch_size).to(like.dtype)


def _sums(watch: Watch, batch: Batch, live: Mapping[str, nn.Parameter], clip: float) -> Gradients:
    """The clipped sums over the rows of a batch; of one in pieces, over its pieces."""
    if not isinstance(batch, InPieces):
        return clipped_sum(watch.gradients(batch), clip)
    pieces = batch

    def summed() -> Gradients:
        total = {n: torch.zeros_like(p, requires_grad=False) for n, p in live.items()}
        for piece in pieces.pieces():
            for name, x in clipped_sum(watch.gradients(piece), clip).items():
                total[name] += x
        return total

    return in_memory(pieces, summed)


def private(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with local steps that hide records as `[privacy] mode = "example-dp"` says; ConfigError if it cannot.

    Whatever the strategy makes of what its clients send is done with what is hidden already.
    """
    steps, local = gradient_steps(recipe.local), config.local
    if steps is None:
        raise ConfigError(
            f"[privacy] mode = 'example-dp' hides records in gradient steps, and {recipe.name} looks at them in other "
            "ways; 'ffa_lora' and 'fedit' take such steps, and mode = 'zo-dp' is for zeroth-order strategies"
        )
    refused = {
        "checkpointing": (local.checkpointing, "runs layers twice, and gradients would count twice"),
        "compile": (local.compile, "leaves out the hooks that tell records apart"),
    }
    for key, (said, why) in refused.items():
        if said:
            raise ConfigError(f"[local] {key} and [privacy] mode = 'example-dp': it {why}; leave it out")
    if recipe.space.of_base:
        raise ConfigError(
            f"[privacy] mode = 'example-dp': {recipe.name} trains all parameters, and clips gradients of linear layers "
            "alone; wanted adapters, for instance [strategy] space = 'lora'"
        )
    loss_of_rows(objectives.of(config))
    return replace(recipe, local=PrivateFirstOrder(steps))
