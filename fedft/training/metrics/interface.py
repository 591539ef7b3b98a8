"""What a metric is, what it sees of a model, and the look-up of those that a run file names.

    [eval]
    metrics = ["exact_match", "my_package.metrics:distinct"]

A metric is a value, or a plain function `(predictions, references) -> float`, see `compared`. It is imported where it
is named: in the operator's own files, or by a site for a server whose metric the site's [policy] lists.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from fedft import registry
from fedft.config import Eval, Model
from fedft.errors import ConfigError
from fedft.reports.columns import Column, declare
from fedft.training.metrics import compared

if TYPE_CHECKING:  # torch loads later than run files are checked
    from torch import Tensor

    from fedft.contract import Batch
    from fedft.data.examples import Example


class MeasuredModel(Protocol):
    """A model as a metric sees it: in evaluation mode, without gradients, and not to be changed."""

    @property
    def tokenizer(self) -> Any:
        """The base model's, as transformers gives it."""

    def batches(self, rows: "Sequence[Example]") -> "Iterator[Batch]":
        """The rows in order, `[eval] batch_size` at a time, padded on the right; see `batches.collate`."""

    def predictions(self, batch: "Batch") -> "tuple[Tensor, Tensor]":
        """(most likely class of every row, or token of every place; the right one; IGNORED: not learned).

        Of several labels, the ones of every row, bool [rows, labels]. Raises DataError for a regression.
        """

    def generate(self, row: "Example", new_tokens: int | None = None) -> str:
        """Greedy continuation of the row's prompt, without special tokens.

        `new_tokens`: at most so many; None: `[eval] generate_tokens`. Raises DataError where the model generates no
        text.
        """

    def response(self, row: "Example") -> str:
        """The text that should follow the row's prompt, without special tokens."""


class Metric(Protocol):
    """A measurement on held-out rows.

    A metric for some values of `[model] task` or `problem_type` only lists them in `tasks`, `problem_types`. One for
    which a library must be there says so in `needs`: the module, and the extra of fedft that brings it.
    """

    @property
    def columns(self) -> tuple[Column, ...]:
        """How the numbers are shown: one column for each that `measure` may give."""

    def measure(self, model: MeasuredModel, rows: "Sequence[Example]") -> Mapping[str, float]:
        """Finite numbers by name; a number that cannot be had of these rows (none, say) is left out.

        The same rows give the same numbers, whatever the batch size beyond rounding, and the model stays as it is.
        """


def asked(measured: Eval) -> list[str]:
    """Names of all metrics that an `[eval]` table asks for; `rouge` is "rouge_l", not measured at every evaluation."""
    return [*measured.metrics, *(["rouge_l"] if measured.rouge else [])]


def chosen(measured: Eval, model: Model | None = None) -> dict[str, Metric]:
    """Every metric that an `[eval]` table names, by name; their columns are declared from here on.

    Args:
        measured: the table.
        model: `[model]` table of the run; None: task and problem type are not checked.
    Raises:
        ConfigError: a name that is not known or cannot be imported, no metric behind it, not for this task or problem
            type, or a column that another metric has.
    """
    return load(asked(measured), model)


def load(wanted: Iterable[str], model: Model | None = None) -> dict[str, Metric]:
    """The metrics of these names, each once, by name. Arguments and errors as in `chosen`."""
    found: dict[str, Metric] = {}
    for name in dict.fromkeys(wanted):
        metric: Any = usable(name, registry.metrics.load(name))
        for key in ("task", "problem_type") if model is not None else ():
            if (own := getattr(model, key)) not in (able := getattr(metric, f"{key}s", None) or (own,)):
                raise ConfigError(f"metric {name!r} is for {key} {', '.join(able)}; [model] {key} is {own}")
        try:
            for column in metric.columns:
                declare(column)
        except ValueError as e:
            raise ConfigError(f"metric {name!r}: {e}") from e
        found[name] = metric
    return found


def usable(name: str, value: Any) -> Any:
    """The metric that `value` is, which a run file calls `name`, or that a function makes. Raises ConfigError."""
    metric = value if hasattr(value, "columns") or not callable(value) else compared.of(name, value)
    columns = getattr(metric, "columns", None)
    if not (isinstance(columns, tuple) and columns and all(isinstance(c, Column) for c in columns)):
        raise ConfigError(f"metric {name!r}: columns is {columns!r:.80}, wanted a tuple of Column")
    if not callable(getattr(metric, "measure", None)):
        raise ConfigError(f"metric {name!r} is a {type(metric).__name__}, wanted a value with columns and measure")
    module, extra = getattr(metric, "needs", None) or ("fedft", "")
    if find_spec(module) is None:
        raise ConfigError(f"metric {name!r} is computed by {module}; pip install 'fedft[{extra}]'")
    return metric
