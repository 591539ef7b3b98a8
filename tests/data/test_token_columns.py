"""Records that are token ids already are learned as they say, or refused with their row."""

import json

import pytest

import fedft
from fedft import run_file
from fedft.data import token_columns
from fedft.data.examples import IGNORED, Example
from fedft.errors import ConfigError, DataError


def encode(tokens, *, max_length=9, **more) -> Example:
    return token_columns.encode({"t": tokens, **more}, field="t", ids=10, max_length=max_length, where="row 4")


def test_all_tokens_are_learned_or_those_with_a_label():
    assert encode([5, 6, 7]) == Example([5, 6, 7], [5, 6, 7], 0)
    assert encode([5, 6, 7], labels=None) == encode([5, 6, 7])
    two = [IGNORED, 6, IGNORED, 8, 9]
    assert encode([5, 6, 7, 8, 9], labels=two) == Example([5, 6, 7, 8, 9], two, 3)
    assert not encode([5, 6], labels=[IGNORED] * 2).learnable
    assert not encode([]).learnable


def test_padding_is_left_out_and_what_is_too_long_is_counted():
    assert encode([0, 5, 6, 0], attention_mask=[0, 1, 1, 0]) == Example([5, 6], [5, 6], 0)
    cut = encode([5, 6, 7, 8], labels=[IGNORED, 6, IGNORED, 8], max_length=2)
    assert cut == Example([5, 6], [IGNORED, 6], 1, lost=1, prompt_lost=1)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"t": "5 6"}, "field 't' is '5 6', wanted a list of integers"),
        ({"t": [5, True]}, r"field 't' is \[5, True\], wanted a list of integers"),
        ({"t": [5, 10]}, "field 't' has token id 10, the model has embeddings of 10 ids"),
        ({"t": [5, -1]}, "field 't' has token id -1"),
        ({"t": [5, 6], "labels": [6]}, "field 'labels' has 1 entries, 't' has 2"),
        (
            {"t": [5, 6], "labels": [6, 7]},
            "field 'labels' has 6 at place 0, wanted -100 or the token there, 5; .*shifted",
        ),
        ({"t": [5, 6], "attention_mask": [1.0, 1.0]}, "field 'attention_mask' is .*, wanted a list of integers"),
        ({"ts": [5]}, "no field 't'; there are ts"),
    ],
)
def test_what_is_no_token_of_the_model_is_refused_with_its_row(row, line):
    with pytest.raises(DataError, match=f"row 4: {line}"):
        token_columns.encode(row, field="t", ids=10, max_length=9, where="row 4")


def test_a_record_has_one_form():
    for beside in ({"messages": "m"}, {"prompt": "{q}"}, {"max_prompt": 3}):
        with pytest.raises(ConfigError, match=r"has no effect beside tokens; leave out one"):
            run_file.from_dict({"data": {"tokens": "t", **beside}})


def test_a_hundred_rows_go_through_a_round_and_learn_what_their_text_would(tmp_path, tiny_base):
    """The same tokens by templates give the same state."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for n in range(100):
            given, learned = tokenizer(f"{n} + 1 = ")["input_ids"], [*tokenizer(str(n + 1))["input_ids"]]
            learned.append(tokenizer.eos_token_id)
            row = {"client": "ab"[n % 2], "prompt": f"{n} + 1 = ", "response": str(n + 1)}
            row |= {"input_ids": given + learned, "labels": [IGNORED] * len(given) + learned}
            file.write(json.dumps(row) + "\n")
    digests = []
    for form in ({}, {"tokens": "input_ids"}):
        config = run_file.from_dict(
            {
                "model": {"id": str(tiny_base)},
                "data": {"train": str(tmp_path / "rows.jsonl"), **form},
                "local": {"steps": 3, "batch_size": 4},
                "server": {"rounds": 1},
                "clients": {"rank": 2},
                "eval": {"max_rows": 8},
            }
        )
        run = fedft.simulate(config, out=tmp_path / f"run-{len(digests)}")
        assert run.summary["rows"]["rows"] == 100
        digests.append(run.summary["state_digest"])
    assert digests[0] == digests[1]
