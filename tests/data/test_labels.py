"""A record's class, labels or numbers are read as they are meant; what could mean something else is refused."""

import json
from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fedft import run_file
from fedft.data import batches, records
from fedft.data.examples import Example
from fedft.data.labels import MULTI, REGRESSION, SINGLE, read
from fedft.errors import ConfigError, DataError

NAMES = ["toxic", "rude", "sad"]


def several(value, names=NAMES):
    return read({"y": value}, "y", names, MULTI, "row 1")


def numbers(value, names=("value",)):
    return read({"y": value}, "y", names, REGRESSION, "row 1")


@given(some.lists(some.booleans(), min_size=3, max_size=9))
def test_every_form_of_the_same_labels_is_read_the_same(has):
    names = [f"n{i}" for i in range(len(has))]
    places = [i for i, h in enumerate(has) if h]
    named = [names[i] for i in reversed(places)]
    forms = [named, json.dumps(named), has, [int(h) for h in has], [float(h) for h in has], json.dumps(has)]
    forms += [places] if not (len(places) == len(has) and set(places) <= {0, 1}) else []
    assert {several(form, names) for form in forms} == {tuple(has)}
    for form in (str, int, float, lambda h: str(h).lower(), lambda h: str(int(h)), bool):
        row = {n: form(h) for n, h in zip(names, has, strict=True)}
        assert read(row, names, names, MULTI, "row 1") == tuple(has)


def test_no_label_is_a_label():
    assert several([]) == several("[]") == (False, False, False)


@pytest.mark.parametrize(
    ("value", "names", "why"),
    [
        (["toxix"], NAMES, "'toxix', not a label; did you mean 'toxic'"),
        ("toxic", NAMES, r"'toxic', wanted a list of labels; \[\] is none of them"),
        ("", NAMES, "wanted a list of labels"),
        (None, NAMES, "None, wanted a list of labels"),
        ("toxic|rude", NAMES, "wanted a list of labels"),
        ("['toxic']", NAMES, r'not a list in JSON, as \["a", "b"\] is'),
        (["rude", "rude"], NAMES, "has the label 'rude' more than once"),
        ([0, 0], NAMES, "has the label 0 more than once"),
        ([3], NAMES, "'3', not a label"),
        ([True, False], NAMES, "'True', not a label"),
        ([["toxic"]], NAMES, "which is not a label"),
        ([0, 1], NAMES[:2], "which may be the places of labels, or a 0 or 1 for each"),
        ([1], NAMES[:1], "which may be the places"),
        ([0, 1, 0], ["0", "1", "2"], "has the label 0 more than once"),
        ([0, 1], ["1", "2"], "'0', not a label"),
    ],
)
def test_labels_that_may_mean_something_else_are_refused_in_one_line(value, names, why):
    with pytest.raises(DataError, match=f"^row 1: 'y' .*{why}") as e:
        several(value, names)
    assert "\n" not in str(e.value)


def test_numbers_are_names_where_a_label_reads_as_one():
    assert several([2, "1"], ["1", "2", "3"]) == (True, True, False)
    assert several([False, True], ["1", "2"]) == (False, True)


@pytest.mark.parametrize("value", [3.5, "3.5", " 3.5", Decimal("3.5"), [3.5], "[3.5]", ["3.5"]])
def test_a_number_is_one_however_it_is_written(value):
    assert numbers(value) == (3.5,)


def test_several_numbers_come_as_a_list_or_as_fields():
    assert numbers([1, "-2.5"], ["a", "b"]) == numbers("[1, -2.5]", ["a", "b"]) == (1.0, -2.5)
    assert read({"b": "-2.5", "a": 1}, ["a", "b"], ["a", "b"], REGRESSION, "row 1") == (1.0, -2.5)


@pytest.mark.parametrize(
    "value",
    [None, "", "high", True, "nan", "inf", float("nan"), float("-inf"), 2e18, 10**400, "1_000", "3,5", [], [1, 2], {}],
)
def test_what_is_no_finite_number_is_refused_in_one_line(value):
    with pytest.raises(DataError, match=r"^row 1: 'y' is .*, wanted a number(, at most 1e\+18)?$") as e:
        numbers(value)
    assert "\n" not in str(e.value)


def test_a_list_where_a_record_has_one_class_says_which_problem_it_is():
    with pytest.raises(DataError, match=r"a list, wanted one label; .*problem_type = 'multi_label_classification'"):
        read({"y": ["toxic"]}, "y", NAMES, SINGLE, "row 1")
    for kind in (SINGLE, MULTI):
        with pytest.raises(DataError, match=r"label = \['a', 'b'\], wanted"):
            read({"a": 1, "b": 0}, ["a", "b"], NAMES, kind, "row 1")


def test_a_batch_says_by_its_dtype_what_is_learned():
    def of(*labels):
        return batches.collate([Example([5], label, 1) for label in labels], 0)["labels"]

    assert of((True, False), (False, False)).tolist() == [[True, False], [False, False]]
    assert (of((True, False)).dtype, of((1.0,)).dtype, of(1, 0).dtype) == (torch.bool, torch.float32, torch.int64)
    assert of((0.5,), (-3.0,)).tolist() == [[0.5], [-3.0]]
    assert all(Example([5], label, 1).learned == 1 for label in ((False, False), (0.0,), 0))


def test_the_forms_of_documents_are_read_from_files(tmp_path):
    (tmp_path / "a.csv").write_text('text,label,score\nx,"[""rude"", ""sad""]",-3.25\ny,[],7\n')
    rows = records.read_rows(str(tmp_path / "a.csv"))
    assert [several(r["label"]) for r in rows] == [(False, True, True), (False, False, False)]
    assert [numbers(r["score"]) for r in rows] == [(-3.25,), (7.0,)]


@pytest.mark.parametrize(
    ("model", "label", "why"),
    [
        ({"task": "causal-lm", "problem_type": REGRESSION}, "y", "is for task 'sequence-classification'"),
        ({"problem_type": "regresion"}, "y", "problem_type is 'regresion', wanted 'single_label_classification' or"),
        (
            {"problem_type": MULTI},
            "y",
            r"of problem_type multi_label_classification needs \[model\] labels, at least one",
        ),
        ({"labels": ["a"]}, "y", "needs .* labels, at least two"),
        ({"labels": ["a", "b"]}, ["a", "b"], "are several fields; a record of problem_type single"),
        ({"labels": ["a", "b"], "problem_type": MULTI}, ["a"], "wanted a field for each of the 2 .* labels"),
        ({"labels": ["a", "b"], "problem_type": REGRESSION}, ["a", "a"], "wanted a field for each of the 2"),
        ({"labels": ["a", "a"], "problem_type": MULTI}, "y", "labels that are distinct"),
    ],
)
def test_keys_that_make_no_sense_together_are_refused_with_the_run_file(model, label, why):
    tables = {"model": {"task": "sequence-classification", **model}, "data": {"label": label}}
    with pytest.raises(ConfigError, match=why) as e:
        run_file.from_dict(tables)
    assert "\n" not in str(e.value)


def test_the_one_output_of_a_regression_needs_no_name():
    tables = {"model": {"task": "sequence-classification", "problem_type": REGRESSION}}
    config = run_file.from_dict(tables)
    assert config.model.labels == ["value"]
    assert run_file.from_dict(config.to_dict()) == config
    assert run_file.from_dict(
        {"model": {"task": "sequence-classification", "labels": ["a", "b"]}}
    ) == run_file.from_dict(
        {"model": {"task": "sequence-classification", "labels": ["a", "b"], "problem_type": SINGLE}}
    )
