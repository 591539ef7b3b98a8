"""A resident model as a strategy sees it, and what is learned from a batch."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract.adapter import Kind, Layout
from fedft.randomness.directions import Directions

Batch = Mapping[str, Tensor]
"""One batch of rows, by name; the names and shapes belong to the run's objective."""
Metrics = dict[str, float]
"""Numbers by name."""


class Handle(Protocol):
    """A resident model as a strategy sees it. Values are unit-scale, float32, on the CPU; `w0` is the base."""

    layout: Layout
    kind: Kind

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live parameters that are trained, by canonical name, in the adapter's own scale."""

    def adapter(self) -> Mapping[str, nn.Parameter]:
        """Every tensor of the adapter that is switched on, trained or frozen, by canonical name, in its own scale."""

    def read(self) -> dict[str, Tensor]:
        """Copies of the trained tensors: the adapter's in unit scale, any other parameter as its change since w0."""

    def start(self) -> Mapping[str, Tensor]:
        """What `read` gives at this moment, for when a turn has ended; it takes less memory where it can."""

    def write(self, values: Tensors, without: Collection[str] | None = None) -> None:
        """Set tensors of the adapter and changes of parameters since w0; names left out stay as they are.

        The modules `without` get no adapter; None: those that have none now, where the ranks are those of now.
        """

    def reset(self) -> None:
        """Put every parameter of the base that is trained back to w0, bit for bit."""

    def set_base_change(self, change: Mapping[str, LowRank | Tensor], key: str) -> None:
        """Make every adapted base weight act as w0 + change [out, in], a module that is left out as w0.

        A float weight is written, summed in float32 and rounded once; a packed one (4 or 8 bits) stays as it is and the
        change is added to what the module gives. `key` names the change: a call with the last one's returns at once.
        """

    def scale(self, name: str) -> float:
        """Unit-scale value of a tensor per value that the adapter holds: LoRA's B has alpha / rank, others 1."""

    @property
    def weights_fixed(self) -> bool:
        """True for full fine-tuning in half precision: parameters stay at w0, forward passes add the summed offset.

        Steps go through `shift_along` then; writing `parameter.data` is an error.
        """

    def shift_along(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Where `weights_fixed`: offset := keep (w0 + offset) - w0 + sum_j coefficients[j] z_j.

        Summed in float32 and rounded once when a forward pass reads it. coefficients: float64 [K].
        Raises ValueError for other directions than since the last `reset`, or where weights are not fixed.
        """

    def loss(self, batch: Batch) -> Tensor:
        """The run's objective on one batch: a float32 scalar, with a graph unless gradients are off."""

    def losses(self, batch: Batch, *, dropout: bool = True) -> Tensor:
        """The run's objective on each row of a batch by itself, float32 [rows], with a graph unless gradients are off.

        Row i's is what `loss` gives of a batch of it alone, whatever rows stand beside it, and 0 where nothing of it is
        learned. `dropout`: whether there is any while gradients are on. Raises ConfigError for an objective that does
        not say it.
        """

    def shares(self, batch: Any) -> Sequence[tuple[Batch, float]]:
        """The pieces of a batch that comes in pieces (`fedft.data.micro_batches`), each with its share of the mean."""

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely class or token, the true one), int64, both [rows] for classes and [rows, length] for tokens.

        The true one is `fedft.data.examples.IGNORED` where nothing is learned. Of several labels bool [rows, labels].
        Raises DataError for numbers to fit.
        """

    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> AbstractContextManager[None]:
        """Inside, forward passes see trained parameters + epsilon z_index; the parameters themselves never move.

        `only`: names of the parameters that are seen moved; the others stay where they are. None: all.
        """

    def directional_derivative(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient of the loss, z_index>, loss) by forward-mode differentiation: exact, no graph, dropout off.

        `only`: names of the parameters along which z_index is not taken as 0. None: all.
        """

    def directional_derivatives(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `directional_derivative`, of every row's own loss (`losses`): float [rows], each."""


class Objective(Protocol):
    """What is learned from a batch: the form of a batch belongs to it (one sequence, a pair of them, a class)."""

    def encode(self, record: Mapping[str, Any], base: Any, config: Any, where: str) -> Any:
        """One record of data as a row that the objective trains on. Raises DataError naming `where`.

        Args:
            record: the record's fields by name.
            base: `fedft.models.load.Base`, whose tokenizer is used.
            config: `fedft.config.RunConfig`.
            where: the record's place, for messages.
        """

    def collate(self, examples: Sequence[Any], pad_id: int) -> Batch:
        """Rows as one batch of tensors, shorter ones filled up with the token `pad_id`."""

    def loss(self, handle: Any, batch: Batch) -> Tensor:
        """The mean loss of a batch: a float32 scalar with a graph, unless gradients are off."""

    # losses(handle, batch) -> Tensor [rows]: of every row by itself what `loss` gives of a batch of it alone. Optional;
    # noise in every step ([privacy] example-dp, zo-dp) needs it. A batch that has several sequences for each of its
    # rows has the first of all rows, then the second of all rows, as pairs of answers do.

    # weight(handle, batch) -> float: how many terms the loss of a batch is the mean of. Optional; `[local] micro_batch`
    # needs it, to take a batch in pieces.

    def measure(self, handle: Any, batch: Batch) -> Mapping[str, tuple[float, float]]:
        """(sum, weight) of every metric on one batch of held-out rows; "loss" is among them. Gradients are off."""
