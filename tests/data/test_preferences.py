"""Pairs of answers: one prompt in both, whatever its length; texts and conversations; what holds no preference goes."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as some
from transformers import AutoTokenizer

from fedft import run_file
from fedft.config import Data, RunConfig
from fedft.data import chat, preferences
from fedft.data.client_datasets import encode as encode_clients
from fedft.data.examples import IGNORED, encode_all
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError, DataError

LOOP = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
ASKING = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATE = LOOP + "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}" + ASKING
MARKED = (
    LOOP
    + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
    + "{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    + ASKING
)
ASKED = {"role": "user", "content": "2 + 2?"}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, ASKED]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    """Bytes and their pairs, and the special tokens of the templates."""
    found = AutoTokenizer.from_pretrained(tiny_base)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return found


class Letters:
    """A token per letter; 1 begins and 2 ends a text."""

    bos_token_id, eos_token_id, pad_token_id = 1, 2, 0

    def __call__(self, text, **_):
        return {"input_ids": [3 + ord(c) % 200 for c in text]}


def pair_of(row, tokens=None, **data):
    config = RunConfig(data=Data(**{"max_length": 60, **data}))
    return preferences.encode(row, SimpleNamespace(tokenizer=tokens or Letters()), config, "row 1")


def said(role, content):
    return {"role": role, "content": content}


@given(
    prompt=some.text("abc", max_size=30), chosen=some.text("de", max_size=30), rejected=some.text("de", max_size=30),
    max_length=some.integers(2, 40), max_prompt=some.none() | some.integers(1, 30),
)  # fmt: skip
def test_both_answers_stand_behind_the_same_tokens(prompt, chosen, rejected, max_length, max_prompt):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    pair = pair_of(row, max_length=max_length, max_prompt=max_prompt)
    n = pair.chosen.prompt_length
    assert n == pair.rejected.prompt_length
    assert pair.chosen.input_ids[:n] == pair.rejected.input_ids[:n]
    whole = [1, *Letters()(prompt)["input_ids"]]
    assert pair.prompt_lost == len(whole) - n
    for example, answer in zip(pair.both, (chosen, rejected), strict=True):
        assert len(example.input_ids) <= max_length
        assert example.labels[:n] == [IGNORED] * n
        ids = [*Letters()(answer)["input_ids"], 2] if answer else []
        assert example.labels[n:] == example.input_ids[n:] == ids[: len(example.labels) - n]
        assert example.lost == len(ids) - len(example.labels) + n
    assert pair.lost == pair.chosen.lost + pair.rejected.lost
    if not (chosen and rejected) or chosen == rejected:
        assert not pair.learnable


def test_pairs_are_counted_and_those_without_a_preference_left_out():
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "chosen": "", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": None},
        {"prompt": "a" * 90, "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": "b" * 70 + "c", "rejected": "b" * 70 + "d"},  # equal within the length
    ]
    for too_long, kept, dropped, empty in (("cut", 2, 0, 4), ("drop", 1, 2, 3)):
        counts = RowCounts()
        found = encode_all(rows, lambda row, where: pair_of(row), "rows", counts, too_long)
        assert (len(found), counts.dropped, counts.empty) == (kept, dropped, empty)
        assert (counts.rows, counts.cut) == (6, 2)
        assert counts.learned_tokens_cut == 2 * (72 - 58)
    with pytest.raises(DataError, match=r"row 5: .* tokens more than"):
        encode_all(rows, lambda row, where: pair_of(row), "rows", RowCounts(), "refuse")


@pytest.mark.parametrize("template", [TEMPLATE, MARKED], ids=["without marks", "with marks"])
def test_a_pair_of_conversations_learns_the_turns_behind_where_they_part(tokenizer, template):
    """Whether their beginning is in both, in a field of its own, or a text: the same tokens, as served."""
    chosen, rejected = said("assistant", "Four."), said("assistant", "Five!")
    both = {"chosen": [*EARLIER, chosen], "rejected": [*EARLIER, rejected]}
    apart = {"prompt": EARLIER, "chosen": [chosen], "rejected": [rejected]}
    pairs = [
        pair_of(row, tokenizer, chat_template=template, max_length=400)
        for row in (both, {**both, "prompt": "2 + 2?"}, apart, {n: json.dumps(talk) for n, talk in both.items()})
    ]
    assert all(pair == pairs[0] for pair in pairs)
    for example, content in zip(pairs[0].both, ("Four.", "Five!"), strict=True):
        learned = tokenizer.decode([label for label in example.labels if label != IGNORED])
        assert learned == content + "<|im_end|>"
        alone = chat.encode(
            {"t": [{**m, "weight": 0} for m in EARLIER] + [said("assistant", content)]}, field="t", template=template,
            tokenizer=tokenizer, max_length=400, where="",
        )  # fmt: skip
        assert example == alone
    n = len(pairs[0].given)
    assert pairs[0].chosen.input_ids[:n] == pairs[0].rejected.input_ids[:n]


def test_a_prompt_that_is_a_text_is_the_user_s_turn(tokenizer):
    row = {"prompt": "2 + 2?", "chosen": [said("assistant", "Four.")], "rejected": [said("assistant", "Five!")]}
    talk = {n: [ASKED, *row[n]] for n in ("chosen", "rejected")}
    assert pair_of(row, tokenizer, chat_template=TEMPLATE) == pair_of(talk, tokenizer, chat_template=TEMPLATE)
    sharegpt = {n: [{"from": "gpt", "value": row[n][0]["content"]}] for n in ("chosen", "rejected")}
    assert pair_of({**row, **sharegpt}, tokenizer, chat_template=TEMPLATE) == pair_of(
        talk, tokenizer, chat_template=TEMPLATE
    )


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ([ASKED, said("assistant", "4")], [ASKED, said("assistant", "4")]),
        ([ASKED, said("assistant", "4")], [ASKED, said("assistant", "")]),
        ([ASKED, said("assistant", "4")], None),
        ([ASKED, said("assistant", "4"), ASKED, said("assistant", "5")], [ASKED, said("assistant", "4")]),
    ],
)
def test_conversations_without_a_preference_are_left_out(tokenizer, chosen, rejected):
    for one, other in ((chosen, rejected), (rejected, chosen)):
        assert not pair_of({"chosen": one, "rejected": other}, tokenizer, chat_template=TEMPLATE).learnable


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "a", "chosen": "b", "rejcted": "c"}, "no field 'rejected'; .*did you mean 'rejcted'"),
        ({"chosen": [ASKED, said("assistant", "4")], "rejected": "5"}, "list of messages and 'rejected' is not"),
        (
            {"chosen": [ASKED, said("assistant", "4")], "rejected": [said("user", "3?"), said("assistant", "5")]},
            "part at message 1, which in 'chosen' is of role 'user'; wanted two answers",
        ),
        ({"chosen": [ASKED], "rejected": [ASKED, said("assistant", "4")]}, "'chosen' has no turn of the assistant"),
        ({"prompt": "a", "chosen": ["b"], "rejected": ["c"]}, "field 'chosen' is a list"),
    ],
)
def test_what_is_no_pair_is_one_line(tokenizer, row, line):
    with pytest.raises(DataError, match=line) as e:
        pair_of(row, tokenizer)
    assert str(e.value).startswith("row 1: ")
    assert "\n" not in str(e.value)


def test_keys_without_effect_on_these_records_are_refused(tokenizer):
    talk = {"chosen": [ASKED, said("assistant", "4")], "rejected": [ASKED, said("assistant", "5")]}
    with pytest.raises(DataError, match="max_prompt has no effect"):
        pair_of(talk, tokenizer, chat_template=TEMPLATE, max_prompt=9)
    with pytest.raises(DataError, match="chat_template has no effect"):
        pair_of({"prompt": "a", "chosen": "b", "rejected": "c"}, chat_template=TEMPLATE)


@pytest.mark.parametrize("objective", ["dpo", {"name": "orpo", "beta": 0.2}])
def test_keys_that_an_objective_on_pairs_does_not_read_are_refused(objective):
    local = {"objective": objective}
    run_file.from_dict({"local": local, "data": {"prompt": "{q}", "chosen": "{a}", "rejected": "{b}"}})
    for key in ("response", "messages", "tokens"):
        with pytest.raises(ConfigError, match=rf"{key} = '{{a}}' has no effect: objective '\w+' reads chosen and"):
            run_file.from_dict({"local": local, "data": {key: "{a}"}})
    with pytest.raises(ConfigError, match="is for task 'causal-lm'"):
        run_file.from_dict({"local": local, "model": {"task": "sequence-classification", "labels": ["a", "b"]}})
    with pytest.raises(ConfigError, match="chosen = 'better' names no field"):
        run_file.from_dict({"local": local, "data": {"chosen": "better"}})


def test_pairs_are_nothing_to_the_likelihood():
    with pytest.raises(ConfigError, match=r"chosen = '{a}' has no effect: objective 'likelihood' reads no pairs"):
        run_file.from_dict({"data": {"chosen": "{a}"}})


def base_of(tokens, ids=300):
    return SimpleNamespace(tokenizer=tokens, ids=ids, source="some model", pad_id=0)


def test_the_largest_token_of_either_answer_is_bounded():
    rows = [{"prompt": "a", "chosen": "b", "rejected": "\xc7"}]
    config = run_file.from_dict({"local": {"objective": "dpo"}, "data": {"max_length": 60}})
    encode_clients({"north": (rows, rows)}, config, base_of(Letters(), ids=203))
    with pytest.raises(DataError, match="token id 202"):
        encode_clients({"north": (rows, rows)}, config, base_of(Letters(), ids=202))


def test_an_answer_without_an_end_is_said():
    tokens = Letters()
    tokens.eos_token_id = None  # type: ignore[assignment]
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    config = run_file.from_dict({"local": {"objective": "dpo"}, "data": {"max_length": 60}})
    encode_clients({"north": (rows, rows)}, config, base_of(tokens), counts := RowCounts())
    assert "as in chosen = " in counts.never_stops
    ends = run_file.from_dict(
        {"local": {"objective": "dpo"}, "data": {"chosen": "{chosen}#", "rejected": "{rejected}#", "max_length": 60}}
    )
    encode_clients({"north": (rows, rows)}, ends, base_of(tokens), counts := RowCounts())
    assert counts.never_stops == ""
