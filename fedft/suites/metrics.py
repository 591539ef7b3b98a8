"""The contract every evaluation metric keeps, on a model of a few hundred numbers.

from fedft.suites.metrics import metric_contract
def test_mine(): metric_contract(mine)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from fedft.adapters.full import Full
from fedft.contract import Layout
from fedft.data.examples import IGNORED, Example
from fedft.models import tasks
from fedft.models.handle import ModelHandle
from fedft.suites.promises import kept
from fedft.training.evaluate import Measured
from fedft.training.metrics.interface import Metric, usable

LETTERS = "~ abcdefghijklmnopqrstuvwxyz"  # a token each; the first fills and ends
CLASSES = 3
CLOSE = 1e-6


class ToyTokenizer:
    """A token per letter, with what metrics use of transformers' tokenizers."""

    bos_token_id = None
    eos_token_id = pad_token_id = 0

    def decode(self, ids: Sequence[int] | Tensor, skip_special_tokens: bool = False) -> str:
        """The letters of `ids`."""
        return "".join(LETTERS[int(i)] for i in ids if int(i) or not skip_special_tokens)


class ToyWriter(nn.Module):
    """A model that says the next letter by the last one and its place, or the class of a text."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        size = len(LETTERS)
        self.seen, self.head = nn.Embedding(size, 8), nn.Linear(8, classes or size)
        self.classes = classes
        values = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=values))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        """input_ids, attention_mask: [n, t]; labels are not looked at, nobody trains here."""
        seen = self.seen(input_ids) * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(seen.sum(1) if self.classes else seen.cumsum(1)), loss=None)

    def generate(self, input_ids: Tensor, attention_mask: Tensor, max_new_tokens: int, **how: object) -> Tensor:
        """Greedy, to the first ending or `max_new_tokens`; [1, t + new]."""
        for _ in range(max_new_tokens):
            said = self(input_ids, torch.ones_like(input_ids)).logits[:, -1].argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, said], dim=1)
            if not said.any():
                break
        return input_ids


def toy(task: str, batch_size: int = 4) -> Measured:
    """A toy model as metrics see one, the same at every call."""
    model = ToyWriter(0 if tasks.of(task).generates else CLASSES)
    layout = Layout(parameters={n: tuple(p.shape) for n, p in model.named_parameters()})
    return Measured(ModelHandle(model, layout, Full()), ToyTokenizer(), batch_size, new_tokens=6)


def rows(task: str, count: int = 9) -> list[Example]:
    """Rows of unlike lengths. Of every third text the response is what the model says, or close to it."""
    texts = ["ask me", "what", "a b c", "why not now", "say", "one two", "left or right", "x", "to be"][:count]
    if not tasks.of(task).generates:
        return [Example(_ids(t), i % CLASSES, len(t)) for i, t in enumerate(texts)]
    found = []
    for i, text in enumerate(texts):
        given, said = _ids(text), "an answer"
        if not i % 3:
            said = toy(task).generate(Example(given, [IGNORED] * len(given), len(given)))
        learned = [*_ids(said), 0]
        found.append(Example(given + learned, [IGNORED] * len(given) + learned, len(given)))
    return found


def _ids(text: str) -> list[int]:
    return [LETTERS.index(c) for c in text]


def _task(metric: Metric) -> str:
    named = getattr(metric, "tasks", None) or (tasks.CAUSAL.name,)
    return tasks.CAUSAL.name if tasks.CAUSAL.name in named else named[0]


def _given(metric: Metric, count: int = 9, **how: int) -> Mapping[str, float]:
    return metric.measure(toy(_task(metric), **how), rows(_task(metric), count))


def _columns_are_declared(metric: Metric) -> None:
    columns = metric.columns
    assert len({c.name for c in columns}) == len(columns), "two columns have one name"
    found = _given(metric)
    assert found, "nothing was measured on nine rows"
    if strange := found.keys() - {c.name for c in columns}:
        raise AssertionError(f"{sorted(strange)} is measured, but no column is declared for it")


def _numbers_are_finite_or_absent(metric: Metric) -> None:
    for count in (9, 1, 0):
        for name, value in _given(metric, count).items():
            assert isinstance(value, int | float), f"{name} of {count} rows is a {type(value).__name__}, not a number"
            assert math.isfinite(value), f"{name} of {count} rows is {value}; what cannot be measured is left out"


def _same_rows_same_numbers(metric: Metric) -> None:
    first, again = _given(metric), _given(metric)
    assert dict(first) == dict(again), f"measured twice: {dict(first)}, then {dict(again)}"


def _batch_size_does_not_matter(metric: Metric) -> None:
    whole = _given(metric, batch_size=64)
    for size in (1, 2, 4):
        found = _given(metric, batch_size=size)
        assert found.keys() == whole.keys(), f"batches of {size} give {sorted(found)}, of 64 {sorted(whole)}"
        for name, value in whole.items():
            off = abs(found[name] - value)
            assert off <= CLOSE * (1 + abs(value)), f"{name} is {found[name]} in batches of {size}, {value} of 64"


def _the_model_is_left_as_it_was(metric: Metric) -> None:
    model, given = toy(_task(metric)), rows(_task(metric))
    module = model.handle.model
    state = {n: x.clone() for n, x in module.state_dict().items()}
    learns = {n: p.requires_grad for n, p in module.named_parameters()}
    module.eval()
    drawn = torch.random.get_rng_state()
    metric.measure(model, given)
    for name, x in module.state_dict().items():
        assert torch.equal(x, state[name]), f"{name} is another one afterwards"
    assert not module.training, "the model is in training mode afterwards"
    assert {n: p.requires_grad for n, p in module.named_parameters()} == learns, "what learns is something else"
    assert all(p.grad is None for p in module.parameters()), "gradients are left behind"
    assert torch.equal(torch.random.get_rng_state(), drawn), "torch's global generator was drawn from"


PROMISES: dict[str, Callable[[Metric], None]] = {
    "columns are declared for what is measured": _columns_are_declared,
    "numbers are finite, or absent": _numbers_are_finite_or_absent,
    "the same rows give the same numbers": _same_rows_same_numbers,
    "the batch size does not matter": _batch_size_does_not_matter,
    "the model is left as it was": _the_model_is_left_as_it_was,
}


def metric_contract(metric: Metric | Callable[..., float], *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `metric`; returns {promise: "" or what broke it}; with `stop` raises the first one.

    A function `(predictions, references) -> float` is a metric too. A metric of the task "causal-lm" is tried on
    generation, one of "sequence-classification" alone on classes. Raises ConfigError for what is no metric, or where
    the library is not installed that computes it.
    """
    metric = usable(getattr(metric, "__name__", type(metric).__name__.lower()), metric)
    with torch.no_grad():
        return kept(PROMISES, metric, type(metric).__name__, stop=stop)
