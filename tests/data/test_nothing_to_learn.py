"""A row with nothing in it is skipped and counted, whatever its form; a row of nobody, or of two, is never guessed."""

import logging
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from fedft import run_file
from fedft.data import client_datasets
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError
from fedft.simulations import virtual_clients

TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
CHAT = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
SILENT = [*TALK[:1], {**TALK[1], "content": None}]
SAID = {"messages": "v", "chat_template": CHAT}
CLASSES = {"model": {"task": "sequence-classification", "labels": ["x", "y"]}}
FORMS = {
    "response": ({"prompt": "{q}", "response": "{v}"}, {}, {"q": "a"}, "b", [None, ""]),
    "text only": ({"prompt": "", "response": "{v}"}, {}, {}, "b", [None, ""]),
    "messages": (SAID, {}, {}, TALK, [None, "", [], SILENT]),
    "sharegpt": (SAID, {}, {}, [{"from": "gpt", "value": "b"}], [None, [{"from": "gpt", "value": None}]]),
    "tokens": ({"tokens": "v"}, {}, {}, [5, 6], [None, [], [5]]),
    "text of a class": ({"text": "{v}"}, CLASSES, {"label": "x"}, "b", [None, ""]),
    "class": ({"label": "v"}, CLASSES, {"text": "b"}, "y", [None, ""]),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_null_is_empty_is_skipped_and_counted(tiny_base, form):
    data, tables, rest, good, nothing = FORMS[form]
    config = run_file.from_dict({"data": {"train": "f", "max_length": 64, **data}, **tables})
    base = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_base), ids=9999, source="base")
    rows = [{**rest, "v": value} for value in (good, *nothing, good)]
    (train, held) = client_datasets.encode({"c": (rows, rows[:2])}, config, base, counts := RowCounts())["c"]
    assert (len(train), len(held)) == (2, 1)
    assert counts.empty == len(nothing) + 1
    assert f"{len(nothing) + 1} of {len(rows) + 2} rows were skipped: there is nothing" in counts.lines(64, 1)[0]
    with pytest.raises(DataError, match="client 'c' has no row to train on; all 1 were left out"):
        client_datasets.encode({"c": (rows[1:2], [])}, config, base)


def owners(tmp_path, text, name="a.jsonl"):
    (tmp_path / name).write_text(text)
    return {c: len(train) for c, (train, _) in virtual_clients.rows_by_client(
        run_file.from_dict({"data": {"train": str(tmp_path / name), "client": "by", "holdout": 0.0}})
    ).items()}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.jsonl", '{"by": "a"}\n{"by": null}\n', "row 2 is null in 'by'"),
        ("a.jsonl", '{"by": "a"}\n{"by": NaN}\n', "row 2 is null in 'by'"),
        ("a.jsonl", '{"by": "a"}\n{"to": "a"}\n', "row 2 has no 'by'; there are to"),
        ("a.jsonl", '{"by": "1"}\n{"by": "1.0"}\n', "'by' says '1' and '1.0'; wanted one form"),
        ("a.csv", "by\n7\n7.00\n", "'by' says '7' and '7.00'; wanted one form"),
        ("a.jsonl", '{"by": ["a"]}\n', "field 'by' says whose a row is; it is a list"),
    ],
)
def test_an_owner_that_is_none_or_two_is_refused(tmp_path, name, text, said):
    with pytest.raises(DataError, match=said):
        owners(tmp_path, text, name)


def test_one_number_is_one_owner_and_an_empty_cell_is_said(tmp_path, caplog):
    assert owners(tmp_path, '{"by": 1}\n{"by": 1.0}\n{"by": "1"}\n{"by": 1.5}\n{"by": true}\n') == {
        "1": 3,
        "1.5": 1,
        "True": 1,
    }
    assert owners(tmp_path, "by\n1.0\n2.0\n1.5\n", "a.csv") == {"1.0": 1, "1.5": 1, "2.0": 1}
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        assert owners(tmp_path, "by,n\nx,1\n,2\n", "a.csv") == {"": 1, "x": 1}
    assert caplog.messages == ["1 rows have nothing in 'by'; they are one client, whose name is ''"]
