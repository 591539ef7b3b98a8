"""Several labels and numbers to fit: the loss is transformers' own, whatever computes it; means are over rows."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from fedft import registry, run_file, strategies
from fedft.adapters.lora import LoRA
from fedft.config import Model
from fedft.data.examples import Example
from fedft.data.labels import MULTI, REGRESSION, SINGLE
from fedft.errors import ConfigError, DataError
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.randomness import families
from fedft.training import directional_derivatives, evaluate, objectives
from fedft.training.metrics import interface
from fedft.training.metrics.macro_f1 import macro_f1
from fedft.training.objectives import Likelihood, OfLogits

SIZES = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"pad_token_id": 0}
KINDS = {
    "bert": (BertForSequenceClassification, BertConfig),
    "roberta": (RobertaForSequenceClassification, RobertaConfig),
    "llama": (LlamaForSequenceClassification, LlamaConfig),
}
PROBLEMS = [(MULTI, 3), (MULTI, 1), (REGRESSION, 1), (REGRESSION, 3)]
problems = pytest.mark.parametrize(("problem", "size"), PROBLEMS)


def handle(problem, size, name="llama"):
    kind, config = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config(**SIZES, num_labels=size, problem_type=problem)).eval()
    base = load.Base(model, None, "sequence-classification", "", "")
    return ModelHandle(model, layout.layout_of(base, "all-linear"), LoRA())


def rows(problem, size, count=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    found = []
    for n in range(count):
        x = torch.randn(size, generator=g)
        labels = tuple((x > 0).tolist()) if problem == MULTI else tuple(x.tolist())
        found.append(Example(torch.randint(1, 97, (3 + n,), generator=g).tolist(), labels, 3 + n))
    return found


@problems
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_is_the_model_s_own_by_every_way(problem, size, name):
    """Trained on, measured, as a mean of terms, and as transformers computes it of its own labels."""
    here, objective = handle(problem, size, name), Likelihood()
    batch = objective.collate(rows(problem, size), 0)
    with torch.no_grad():
        own = float(here.model(**{**batch, "labels": batch["labels"].float()}).loss)
        total, count = objective.measure(here, batch)["loss"]
        assert float(here.loss(batch)) == pytest.approx(own, rel=1e-6)
        assert float(OfLogits().loss(here, batch)) == pytest.approx(own, rel=1e-6)
        assert float(here.losses(batch).mean()) == pytest.approx(own, rel=1e-6)
    assert count == 7
    assert total / count == pytest.approx(own, rel=1e-6)
    cross = functional.binary_cross_entropy_with_logits if problem == MULTI else functional.mse_loss
    logits = here.model(batch["input_ids"], batch["attention_mask"]).logits
    assert own == pytest.approx(float(cross(logits, batch["labels"].float())), rel=1e-6)


@problems
def test_what_is_measured_is_of_all_rows_whatever_the_batch_size(problem, size):
    here, of = handle(problem, size), rows(problem, size)
    found = [evaluate.evaluate(here, of, n, 0) for n in (1, 3, 7)]
    assert all(f == pytest.approx(found[0], rel=1e-5) for f in found)
    assert found[0]["count"] == 7
    batch = Likelihood().collate(of, 0)
    with torch.no_grad():
        logits = here.model(batch["input_ids"], batch["attention_mask"]).logits
    if problem == REGRESSION:
        assert found[2].keys() == {"loss", "mae", "count"}
        assert found[2]["mae"] == pytest.approx(float((logits - batch["labels"]).abs().mean()), rel=1e-5)
        return
    guess, true = logits.sigmoid() > 0.5, batch["labels"]
    hits, wrong = int((guess & true).sum()), int((guess != true).sum())
    assert found[2]["accuracy"] == pytest.approx(1 - wrong / true.numel())
    assert found[2]["micro_f1"] == pytest.approx(2 * hits / (2 * hits + wrong))


def test_where_no_row_has_or_gets_a_label_there_is_no_f1():
    here = handle(MULTI, 3)
    with torch.no_grad():
        here.model.score.weight.zero_()  # a logit of 0 is no label
    found = evaluate.evaluate(here, [Example([5, 6], (False,) * 3, 2)], 4, 0)
    assert found.keys() == {"loss", "accuracy", "count"}
    assert found["accuracy"] == 1


@problems
def test_derivatives_without_back_propagation_agree_with_it(problem, size):
    here = handle(problem, size, "bert")
    here.write(here.kind.initial(here.layout, 4, 1))
    batch = Likelihood().collate(rows(problem, size), 0)
    z = families.make("gaussian", 1, 2)
    forward, loss = here.directional_derivative(batch, z, 0)
    apart, mean = directional_derivatives.two_point(here, batch, z, 0, 1e-3)
    assert loss == pytest.approx(mean, rel=1e-3)
    assert forward == pytest.approx(apart, rel=2e-2, abs=2e-3)


def test_the_accuracy_and_f1_that_zeroth_order_steps_minimise_by_hand():
    guess = torch.tensor([[True, False, True], [False, False, True]])
    true = torch.tensor([[True, True, False], [False, False, True]])
    said = SimpleNamespace(predictions=lambda batch: (guess, true))
    assert directional_derivatives.errors(said, {}) == pytest.approx(2 / 6)
    assert directional_derivatives.lost_f1(said, {}) == pytest.approx(1 - 2 * 2 / (3 + 3))
    none = SimpleNamespace(predictions=lambda batch: (guess & False, true & False))
    assert directional_derivatives.lost_f1(none, {}) == 0


def test_macro_f1_of_a_regression_is_refused_before_anything_is_loaded():
    for kind, able in ((SINGLE, True), (MULTI, True), (REGRESSION, False)):
        model = Model(task="sequence-classification", problem_type=kind, labels=["a", "b"])
        with nullcontext() if able else pytest.raises(ConfigError, match="problem_type is regression"):
            interface.load(["macro_f1"], model)


def test_macro_f1_by_hand():
    """Labels: 2/2, 0 of 1, and one that nobody has or guesses; classes as in their own test of zeroth-order steps."""

    def of(*pairs):
        pairs = [tuple(torch.tensor(x) for x in pair) for pair in pairs]
        return macro_f1.measure(SimpleNamespace(batches=lambda rows: pairs, predictions=lambda pair: pair), [])

    several = of(([[True, False, False]], [[True, True, False]]), ([[True, False, False]], [[True, False, False]]))
    assert several == {"macro_f1": pytest.approx((1 + 0) / 2)}
    assert of(([0, 0], [0, 0]), ([1, 1], [0, 1])) == {"macro_f1": pytest.approx((4 / 5 + 2 / 3) / 2)}
    assert of() == of(([[False]], [[False]])) == {}


def test_predictions_are_decisions_at_one_half_and_a_regression_has_none():
    here = handle(MULTI, 3)
    batch = Likelihood().collate(rows(MULTI, 3), 0)
    guess, true = here.predictions(batch)
    with torch.no_grad():
        logits = here.model(batch["input_ids"], batch["attention_mask"]).logits
    assert torch.equal(guess, logits.sigmoid() > 0.5)
    assert torch.equal(true, batch["labels"])
    with pytest.raises(DataError, match="a regression has no classes to predict"):
        handle(REGRESSION, 1).predictions(Likelihood().collate(rows(REGRESSION, 1), 0))


def config(problem, **strategy):
    tables = {"model": {"task": "sequence-classification", "labels": ["a", "b"], "problem_type": problem}}
    return run_file.from_dict(tables | {"strategy": strategy or {"name": "fedit"}})


def test_an_objective_for_classes_is_refused_for_what_is_none(monkeypatch):
    assert isinstance(objectives.of(config(REGRESSION)), Likelihood)

    class Smoothed(OfLogits):
        """As another package's are."""

    chosen = SimpleNamespace(chosen=lambda choice: Smoothed())
    monkeypatch.setattr(objectives, "registry", SimpleNamespace(objectives=chosen, named=registry.named))
    assert isinstance(objectives.of(config(SINGLE)), Smoothed)
    for problem in (MULTI, REGRESSION):
        with pytest.raises(
            ConfigError, match="objective 'likelihood' is for problem_type single_.*; .* has " + problem
        ):
            objectives.of(config(problem))


@pytest.mark.parametrize("objective", ["accuracy", "f1"])
def test_steps_that_minimise_errors_of_classes_are_refused_for_a_regression(objective):
    one = {"name": "zo_fedavg", "objective": objective}
    for options in (one, {"name": "fedopt", "on": one}):
        with pytest.raises(ConfigError, match=f"zo_fedavg: objective = '{objective}' is of classes; a regression has"):
            strategies.of(config(REGRESSION, **options))
    assert strategies.of(config(MULTI, **one)).name == "zo_fedavg"
    assert strategies.of(config(REGRESSION, name="zo_fedavg")).name == "zo_fedavg"
