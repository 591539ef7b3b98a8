"""A client's training between download and upload: its rows, the step that is taken on them, and terms of a step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from fedft.contract.model import Batch, Handle
from fedft.contract.turn import Trained, Turn


class Data(Protocol):
    """A client's own training rows, and how batches are made of them."""

    @property
    def rows(self) -> Sequence[Any]:
        """Every row of the client, encoded as the run's objective trains on it."""

    def batch(self, rows: Sequence[Any]) -> Batch:
        """The given rows as one batch of tensors."""

    def of_step(self, rows: Sequence[Any], step: int) -> Batch:
        """The given rows as the batch of a step, numbered from 1; it comes in pieces where the run takes them so."""

    def batches(self, turn: Turn) -> Iterator[Batch]:
        """`turn.plan.steps` batches of the run's size, in an order drawn from the turn's seed."""


class LocalStep(Protocol):
    """A client's training between download and upload."""

    def __call__(self, handle: Handle, data: Data, turn: Turn) -> Trained:
        """Take `turn.plan.steps` steps on the client's rows from where `handle` stands.

        Raises FloatingPointError if no step had a finite loss.
        """


@dataclass(frozen=True)
class Learning:
    """The tensors of one client in its local steps, in the adapter's own scale."""

    live: Mapping[str, nn.Parameter]
    """The parameters that learn, by canonical name; `.grad` is filled in every step."""
    frozen: Mapping[str, Tensor]
    """The rest of the adapter."""
    scale: Callable[[str], float]
    """(name) -> unit-scale value per own value of a tensor, as `Handle.scale`."""


@runtime_checkable
class Term(Protocol):
    """Something that takes part in every gradient step of a turn: a proximal pull, a control variate, a penalty."""

    def begin(self, learning: Learning, turn: Turn) -> "Course":
        """The term's part in one client's turn, made before the first step."""

    # bytes_each: int, what the part keeps of every number that learns during the steps. Optional; forecasts of memory
    # count it.


class Course:
    """A term's part in one turn. Both methods do nothing unless they are overridden."""

    def step(self) -> None:
        """Change the gradients in place, after back-propagation and before they are clipped."""

    def finish(self, trained: Trained, handle: Handle) -> Trained:
        """The turn's result with what the term adds to it; `handle` stands where the steps ended."""
        return trained
