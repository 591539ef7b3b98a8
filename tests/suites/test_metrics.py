"""The contract of metrics: the built-in ones keep it, and each way of breaking it is found."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from fedft import registry
from fedft.data.examples import IGNORED
from fedft.reports.columns import Column
from fedft.suites import metrics
from fedft.suites.metrics import metric_contract
from fedft.training.metrics.interface import MeasuredModel


@pytest.mark.parametrize("name", registry.metrics.built_in)
def test_every_built_in_metric_keeps_the_contract(name: str) -> None:
    metric = registry.metrics.load(name)
    if needs := getattr(metric, "needs", None):
        pytest.importorskip(needs[0], reason=f"pip install 'fedft[{needs[1]}]'")
    metric_contract(metric)


def same_length(predictions: list[str], references: list[str]) -> float:
    return sum(len(p) == len(r) for p, r in zip(predictions, references, strict=True)) / len(references)


def test_a_plain_function_is_a_metric_and_is_held_to_the_same() -> None:
    metric_contract(same_length)

    def counts(predictions: list[str], references: list[str]) -> float:
        return float(next(COUNTED))

    assert metric_contract(counts, stop=False)["the same rows give the same numbers"]


@dataclass(frozen=True)
class Made:
    """A metric of one function."""

    of: Callable[[MeasuredModel, Any], Mapping[str, float]]
    columns: tuple[Column, ...] = (Column("mine", "mine"),)
    tasks: tuple[str, ...] = ("causal-lm", "sequence-classification")

    def measure(self, model: MeasuredModel, rows: Any) -> Mapping[str, float]:
        return self.of(model, rows)


def share_right(model: MeasuredModel, rows: Any) -> Mapping[str, float]:
    right = count = 0
    for batch in model.batches(rows):
        said, wanted = model.predictions(batch)
        right += int((said == wanted)[wanted != IGNORED].sum())
        count += int((wanted != IGNORED).sum())
    return {"mine": right / count} if count else {}


@pytest.mark.parametrize("tasks", [("causal-lm",), ("sequence-classification",)])
def test_a_metric_of_predictions_keeps_it_on_either_task(tasks: tuple[str, ...]) -> None:
    metric_contract(Made(share_right, tasks=tasks))


def per_batch(model: MeasuredModel, rows: Any) -> Mapping[str, float]:
    """The mean of the batches' means, which weighs a short last batch too much."""
    means = [share_right(Batches(model, batch), rows)["mine"] for batch in model.batches(rows)]
    return {"mine": sum(means) / len(means)} if means else {}


@dataclass(frozen=True)
class Batches:
    model: MeasuredModel
    batch: Any

    def batches(self, rows: Any) -> Any:
        return [self.batch]

    def predictions(self, batch: Any) -> Any:
        return self.model.predictions(batch)


def moves(model: Any, rows: Any) -> Mapping[str, float]:
    with torch.no_grad():
        next(model.handle.model.parameters()).add_(1e-3)
    return {"mine": 1.0}


def trains(model: Any, rows: Any) -> Mapping[str, float]:
    model.handle.model.train()
    return {"mine": 1.0}


def draws(model: Any, rows: Any) -> Mapping[str, float]:
    return {"mine": float(torch.rand(()))}


COUNTED = iter(range(1000))


@pytest.mark.parametrize(
    ("of", "promise"),
    [
        (lambda model, rows: {}, "columns are declared for what is measured"),
        (lambda model, rows: {"other": 1.0}, "columns are declared for what is measured"),
        (lambda model, rows: {"mine": math.nan}, "numbers are finite, or absent"),
        (lambda model, rows: {"mine": 1 / len(rows)}, "numbers are finite, or absent"),
        (lambda model, rows: {"mine": "good"}, "numbers are finite, or absent"),
        (lambda model, rows: {"mine": next(COUNTED)}, "the same rows give the same numbers"),
        (per_batch, "the batch size does not matter"),
        (moves, "the model is left as it was"),
        (trains, "the model is left as it was"),
        (draws, "the model is left as it was"),
    ],
)
def test_a_metric_that_breaks_a_promise_is_told_which(of: Any, promise: str) -> None:
    assert metric_contract(Made(of), stop=False)[promise]
    with pytest.raises(AssertionError):
        metric_contract(Made(of))


def test_the_toy_s_generations_are_right_where_they_should_be() -> None:
    """Three of nine responses are what the toy says; without such rows `exact_match` could be anything."""
    found = registry.metrics.load("exact_match").measure(metrics.toy("causal-lm"), metrics.rows("causal-lm"))
    assert found == {"exact_match": pytest.approx(3 / 9)}
