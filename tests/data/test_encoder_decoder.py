"""Rows for an encoder-decoder: each side has the tokenizer's special tokens, its own length, and its own padding."""

import pytest
import torch

from fedft import run_file
from fedft.data import encoder_decoder, examples
from fedft.data.batches import collate
from fedft.data.encoder_decoder import TwoSided
from fedft.data.examples import IGNORED
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError
from tests.support.encoder_decoders import END, OFFSET, START, tokenizer

ROW = {"q": "abc", "a": "xy"}


def encoded(kind="t5", row=ROW, max_length=32, max_prompt=None, prompt="Q {q}"):
    return encoder_decoder.encode(
        row, prompt=prompt, response="{a}", tokenizer=tokenizer(kind), max_length=max_length, max_prompt=max_prompt,
        where="row 1",
    )  # fmt: skip


def text(ids):
    return tokenizer("plain").decode([i for i in ids if i >= OFFSET])


@pytest.mark.parametrize(
    ("kind", "before", "after", "first"),
    [("t5", [], [END], []), ("bart", [START], [END], [START]), ("plain", [], [], [])],
)
def test_each_side_is_as_the_tokenizer_writes_it_and_the_response_has_an_end(kind, before, after, first):
    e = encoded(kind)
    assert e.given[: len(before)] == before
    assert e.given[len(e.given) - len(after) :] == after
    assert len(e.given) == len("Q abc") + len(before) + len(after)
    assert text(e.given) == "Q abc"
    assert e.response == [*first, *e.response[len(first) : -1], END]
    assert text(e.response) == "xy"
    assert e.learned == len(e.response) == 3 + len(first)
    assert e.learnable


def test_a_long_prompt_loses_its_right_end_and_keeps_its_special_tokens():
    """What T5 was told to do stands first ("summarize: ..."), so it is kept."""
    e = encoded("bart", max_length=4)
    assert (e.given[0], text(e.given), e.given[-1], e.prompt_lost) == (START, "Q ", END, 3)
    short = encoded("t5", max_prompt=4)
    assert (text(short.given), short.given[-1], short.prompt_lost, short.lost) == ("Q a", END, 2, 0)
    assert len(encoded("bart", max_prompt=1).given) == 1


def test_a_long_response_loses_its_right_end_and_does_not_learn_to_stop_there():
    e = encoded("t5", max_length=2, max_prompt=9)
    assert (text(e.response), END in e.response, e.lost, e.prompt_lost) == ("xy", False, 1, 0)


def test_neither_side_takes_room_from_the_other():
    e = encoded("t5", row={"q": "a" * 30, "a": "b" * 31}, max_length=32, prompt="{q}")
    assert (len(e.given), len(e.response), e.lost, e.prompt_lost) == (31, 32, 0, 0)


@pytest.mark.parametrize("kind", ["t5", "bart", "plain"])
def test_of_an_empty_response_nothing_is_learned_and_an_empty_prompt_is_an_end_token(kind):
    e = encoded(kind, row={"q": "abc", "a": None})
    assert (e.response, e.learned, e.learnable) == ([], 0, False)
    assert encoded(kind, row={"q": "", "a": "x"}, prompt="{q}").given[-1] == END


def test_what_is_cut_is_counted_on_both_sides_and_may_be_refused():
    def one(row, where):
        return encoded(row=row, max_length=4)

    rows = [ROW, {"q": "a", "a": "wxyz"}, {"q": "", "a": ""}]
    kept = examples.encode_all(rows, one, "file", counts := RowCounts())
    assert len(kept) == 2
    assert (counts.rows, counts.cut, counts.empty) == (3, 2, 1)
    assert (counts.learned_tokens, counts.learned_tokens_cut) == (3 + 4, 1)
    with pytest.raises(examples.DataError, match="file, row 1: 2 tokens more"):
        examples.encode_all(rows, one, "file", RowCounts(), "refuse")


def test_each_side_is_padded_to_its_own_longest():
    batch = collate([TwoSided([5, 6, 7], [8], 3), TwoSided([5], [8, 9], 1)], 0)
    assert {n: x.tolist() for n, x in batch.items()} == {
        "input_ids": [[5, 6, 7], [5, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[8, IGNORED], [8, 9]],
    }
    assert all(x.dtype == torch.int64 for x in batch.values())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"prompt": ""}, r"\[data\] prompt = '' leaves the encoder nothing to read; task 'seq2seq-lm'"),
        ({"messages": "m"}, r"\[data\] messages are for task 'causal-lm', the task is 'seq2seq-lm'"),
        ({"tokens": "t"}, r"\[data\] tokens are for task 'causal-lm', the task is 'seq2seq-lm'"),
    ],
)
def test_forms_of_records_that_are_for_one_side_are_refused(data, said):
    with pytest.raises(ConfigError, match=said):
        run_file.from_dict({"model": {"task": "seq2seq-lm"}, "data": data})
