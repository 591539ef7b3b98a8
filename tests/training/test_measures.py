"""The measures beside the loss: token F1, BLEU, perplexity, and any function of predictions and references."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from fedft import allowed_code
from fedft.config import Eval, Local, Model, RunConfig
from fedft.data.examples import Example
from fedft.errors import ConfigError
from fedft.suites import metrics as toys
from fedft.training.metrics import interface, loss
from fedft.training.metrics.bleu import bleu
from fedft.training.metrics.token_f1 import f1


@pytest.mark.parametrize(
    ("said", "wanted", "by_hand"),
    [
        ("the cat sat", "cat sat", 1.0),  # articles do not count
        ("A cat, a CAT!", "cat", 2 * 1 / (2 + 1)),  # each word as often as both have it
        ("dog", "cat", 0.0),
        ("", "", 1.0),
        ("the", "", 1.0),  # no words on either side
        ("cat", "", 0.0),
    ],
)
def test_token_f1_is_squads(said: str, wanted: str, by_hand: float) -> None:
    assert f1(said, wanted) == pytest.approx(by_hand)
    assert f1(wanted, said) == pytest.approx(by_hand)


class Writes:
    """A model that says what its rows say it does."""

    def generate(self, row: Any) -> str:
        return row[0]

    def response(self, row: Any) -> str:
        return row[1]


def test_bleu_is_that_of_the_corpus_and_not_the_mean_of_its_rows() -> None:
    """By hand, of 2 rows: 1-grams 5/6, 2-grams 3/4, 3-grams 1/2; 4-grams: none in either, so smoothed to 1/2 of none.

    Rows of four words have a 4-gram each, of which one is right: 1/2. Lengths are equal, so there is no penalty.
    """
    pytest.importorskip("sacrebleu", reason="pip install 'fedft[metrics]'")
    rows: Any = [("a b c d", "a b c d"), ("a b x y", "a b c d")]
    by_hand = 100 * (6 / 8 * 4 / 6 * 2 / 4 * 1 / 2) ** 0.25
    assert bleu.measure(Writes(), rows)["bleu"] == pytest.approx(by_hand)  # type: ignore[arg-type]
    alone = [bleu.measure(Writes(), [row])["bleu"] for row in rows]  # type: ignore[arg-type]
    assert sum(alone) / 2 != pytest.approx(by_hand)


def test_a_metric_whose_library_is_not_there_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        interface.load(["bleu"])
    assert "fedft[metrics]" in str(refused.value)
    assert "\n" not in str(refused.value)


CODE = """
seen = []
def shorter(predictions, references):
    seen.append((predictions, references))
    return sum(len(p) < len(r) for p, r in zip(predictions, references)) / len(references)
shorter.better = "higher"
def Strange(predictions, references):
    return {"no": "number"}
def alone(predictions):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "my_measures.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(allowed_code.VARIABLE, "")
    allowed_code.allow(["my_measures:shorter", "my_measures:Strange", "my_measures:alone"])
    yield lambda: sys.modules["my_measures"]
    sys.modules.pop("my_measures", None)


def test_a_function_is_given_generations_and_responses(mine: Any) -> None:
    metric = interface.load(["my_measures:shorter"])["my_measures:shorter"]
    model, rows = toys.toy("causal-lm"), toys.rows("causal-lm")
    found = metric.measure(model, rows)
    assert mine().seen == [([model.generate(r) for r in rows], [model.response(r) for r in rows])]
    assert found.keys() == {"shorter"}
    assert 0 <= found["shorter"] <= 1
    assert metric.columns[0].better == "higher"
    assert metric.measure(model, []) == {}


def test_a_function_is_given_classes_where_rows_have_classes(mine: Any) -> None:
    metric = interface.load(["my_measures:shorter"])["my_measures:shorter"]
    rows: list[Example] = toys.rows("sequence-classification")
    with pytest.raises(TypeError):  # a class has no length: they came as they are
        metric.measure(toys.toy("sequence-classification"), rows)
    predictions, references = mine().seen[0]
    assert references == [row.labels for row in rows]
    assert {type(p) for p in predictions} == {int}


def test_a_function_that_gives_no_number_is_left_out_and_one_that_takes_no_two_lists_refused(mine: Any) -> None:
    metric = interface.load(["my_measures:Strange"])["my_measures:Strange"]
    assert metric.columns[0].name == "strange"
    with pytest.raises(TypeError):
        metric.measure(toys.toy("causal-lm"), toys.rows("causal-lm"))
    with pytest.raises(ConfigError, match="predictions and references"):
        interface.load(["my_measures:alone"])


def test_a_function_that_nobody_allowed_is_not_imported(mine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(allowed_code.VARIABLE, "")
    with pytest.raises(ConfigError, match="--allow my_measures:shorter"):
        interface.chosen(Eval(metrics=["my_measures:shorter"]))
    assert "my_measures" not in sys.modules


def test_perplexity_is_of_all_held_out_tokens_as_one_text() -> None:
    clients = [{"loss": 1.0, "count": 30.0}, {"loss": 2.0, "count": 10.0, "perplexity": 3.0}]
    found = loss.over_clients(clients, perplexity=True)
    assert found["perplexity"] == pytest.approx(math.exp((30 * 1.0 + 10 * 2.0) / 40))
    assert "perplexity" not in loss.over_clients(clients)  # nor does a client name one
    assert "perplexity" not in loss.over_clients([{"loss": 1e4, "count": 3.0}], perplexity=True)  # is no number


def test_only_a_likelihood_of_tokens_has_a_perplexity() -> None:
    assert loss.of_tokens(RunConfig())
    assert not loss.of_tokens(RunConfig(local=Local(objective="dpo")))
    assert not loss.of_tokens(RunConfig(model=Model(task="sequence-classification")))
