"""Records become the batches they say."""

import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedft import run_file
from fedft.data import examples as data
from fedft.data import records, templates
from fedft.data.examples import IGNORED, Example
from fedft.data.row_counts import RowCounts
from fedft.errors import ConfigError, DataError
from fedft.simulations import virtual_clients

WORDS = ["what", "is", "two", "and", "four", "six", *"abcdefghijklm"]


def tokenizer(bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token for every word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    special |= {"bos_token": "<s>"} if bos else {}
    special |= {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def by_templates(prompt, response, *, max_length, max_prompt=None, **special):
    """A function that encodes a record by these templates."""
    return partial(
        data.encode_generation,
        prompt=prompt,
        response=response,
        tokenizer=tokenizer(**special),
        max_length=max_length,
        max_prompt=max_prompt,
    )


def encode(prompt="what is", response="a b c", *, max_length=32, max_prompt=None, **special) -> Example:
    plain = by_templates("{q}" if prompt else "", "{a}", max_length=max_length, max_prompt=max_prompt, **special)
    return plain({"q": prompt, "a": response}, where="here")


def words(ids) -> str:
    return tokenizer().decode([i for i in ids if i != IGNORED])


def test_importing_the_module_imports_neither_datasets_nor_flower_nor_transformers():
    code = "import sys, fedft.data; print({'datasets', 'flwr_datasets', 'flwr', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- templates


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Q: {q}!", "Q: {n} [[x]]!"),
        ("{n}{none}", "7"),
        ("{{Q}} {two words} {{{n}}}", "{Q} 2 {7}"),
        ("{q.__class__}", None),
        ("{missing}", None),
        ("{items}", None),
        ("a[[ and {n}]].", "a and 7."),
        ("a[[ and {empty}]].", "a."),
        ("a[[ and {missing}{n}]].", "a."),
        ("a[[1]] {}", "a[[1]] {}"),
    ],
)
def test_templates(template, text):
    row = {"q": "{n} [[x]]", "n": 7, "two words": 2, "none": None, "empty": "", "items": [1]}
    if text is not None:
        assert templates.fill(template, row, "here") == text
    else:
        with pytest.raises(DataError, match=r"here: (no field|field 'items' is a list)"):
            templates.fill(template, row, "here")


def test_an_unknown_field_names_those_there_are_and_the_nearest():
    with pytest.raises(DataError, match=r"row 3: no field 'prompt'; there are question, answer$"):
        templates.fill("{prompt}", {"question": 1, "answer": 2}, "row 3")
    with pytest.raises(DataError, match="there are question, answer; did you mean 'answer'"):
        templates.fill("{anser}", {"question": 1, "answer": 2}, "row 3")


@pytest.mark.parametrize("said", ["{q}: {{a}}", "{q}: {{ a }}"])
def test_a_field_in_double_braces_is_refused_with_the_right_spelling(said):
    with pytest.raises(DataError, match=r"row 3: .* has the field 'a' in double braces, .*; wanted '{q}: {a}'"):
        templates.fill(said, {"q": 1, "a": 2}, "row 3")


@pytest.mark.parametrize(
    ("key", "said", "wanted"),
    [
        ("response", "{{answer}}", "in single braces it does: '{answer}'"),
        ("prompt", "Q: {{ question }}", "in single braces it does: 'Q: {question}'"),
        ("response", "answer", "a name in braces does, as in '{answer}'"),
        ("response", "", "a name in braces does"),
        ("prompt", "[[Say it.]] {}", "a name in braces does"),
        ("text", "%(text)s", "a name in braces does"),
    ],
)
def test_a_template_that_names_no_field_is_refused(key, said, wanted):
    with pytest.raises(ConfigError) as e:
        run_file.from_dict({"data": {key: said}})
    assert str(e.value) == f"run: [data] {key} = {said!r} names no field; {e.value.args[0].rpartition('; ')[2]}"
    assert wanted in str(e.value)


def test_only_an_empty_prompt_may_name_no_field():
    assert run_file.from_dict({"data": {"prompt": "", "response": "{text}"}}).data.prompt == ""


# --- encoding


def test_learned_labels_decode_to_the_response_and_its_end():
    example = encode()
    assert words(example.input_ids) == "<s> what is a b c </s>"
    assert words(example.labels) == "a b c </s>"
    assert words(example.input_ids[: example.prompt_length]) == "<s> what is"


def test_an_empty_prompt_learns_every_token():
    assert words(encode("").labels) == "a b c </s>"
    assert encode("", bos=False).prompt_length == 0


def test_bos_and_eos_are_there_only_if_the_tokenizer_has_them_and_never_twice():
    assert words(encode(bos=False, eos=False).input_ids) == "what is a b c"
    assert words(encode("<s> what").input_ids) == "<s> what a b c </s>"


@pytest.mark.parametrize("max_prompt", [None, 1, 2, 3, 40])
@pytest.mark.parametrize("max_length", range(1, 12))
def test_truncation_keeps_one_token_to_learn_or_the_row_is_skipped(max_length, max_prompt):
    example = encode("a b c d e", "f g h", max_length=max_length, max_prompt=max_prompt)
    assert len(example.input_ids) == len(example.labels) <= max_length
    assert example.prompt_length <= (max_prompt or max_length)
    assert example.learnable == (max_length > 1)
    if example.learnable:
        assert words(example.labels).startswith("f")


def test_the_prompt_is_cut_from_the_left_behind_its_bos():
    assert words(encode("a b c d e", "f", max_prompt=3).input_ids) == "<s> d e f </s>"


def test_rows_of_which_nothing_can_be_learned_are_skipped_and_counted():
    rows = [{"a": "a b"}, {"a": ""}, {"a": "a"}, {"a": "c d"}]
    plain = by_templates("", "{a}", max_length=8, bos=False, eos=False)
    examples = data.encode_all(rows, plain, "rows", counts := RowCounts())
    assert [words(e.input_ids) for e in examples] == ["a b", "c d"]
    assert (counts.rows, counts.empty, counts.cut, counts.learned_tokens) == (4, 2, 0, 2)
    with pytest.raises(DataError, match="rows, row 2: no field 'a'"):
        data.encode_all([{"a": "a"}, {}], plain, "rows", RowCounts())


def test_of_an_empty_response_nothing_is_learned_not_even_to_stop():
    assert not encode(response="").learnable
    assert encode(response="a").learned == 2


@pytest.mark.parametrize(
    ("prompt", "response", "length", "kept"),
    [
        ("a b c d e f g", "h i j k", 8, "<s> e f g h i j k"),  # the response has half, no more: its end is lost
        ("a b c d e f g", "h", 8, "<s> c d e f g h </s>"),  # a short response leaves the prompt more
        ("a", "h i j k l m", 8, "<s> a h i j k l m"),  # and a short prompt the response
        ("a b c", "h i j", 8, "<s> a b c h i j </s>"),
    ],
)
def test_a_prompt_leaves_the_response_half_of_the_room_or_all_it_needs(prompt, response, length, kept):
    example = encode(prompt, response, max_length=length)
    assert words(example.input_ids) == kept
    assert example.lost + example.prompt_lost == len(f"{prompt} {response}".split()) + 2 - len(kept.split())


def test_rows_that_do_not_fit_are_cut_dropped_or_refused_and_counted():
    rows = [{"p": "a", "r": "b"}, {"p": "a b c d", "r": "e f g h"}]
    plain = by_templates("{p}", "{r}", max_length=6)
    both = data.encode_all(rows, plain, "rows", cut := RowCounts())
    assert (len(both), cut.cut, cut.learned_tokens, cut.learned_tokens_cut) == (2, 1, 5, 2)
    assert cut.lines(6, 1) == [
        "1 of 2 rows are longer than max_length = 6 tokens and were cut; 2 of 7 tokens to learn are gone"
    ]
    assert " longer than max_length = 6 or max_prompt = 2 tokens and were cut" in cut.lines(6, 1, 2)[0]
    assert data.encode_all(rows, plain, "rows", dropped := RowCounts(), "drop") == both[:1]
    assert dropped.lines(6, 1) == ["1 of 2 rows are longer than max_length = 6 and were dropped"]
    with pytest.raises(DataError, match=r"rows, row 2: 4 tokens more than \[data\] max_length or max_prompt allow"):
        data.encode_all(rows, plain, "rows", RowCounts(), "refuse")


def test_rows_that_teach_nothing_are_left_out_of_a_population_which_says_so():
    settings = run_file.from_dict({"data": {"train": "f.jsonl", "prompt": "", "response": "{a}", "max_length": 8}})
    base = SimpleNamespace(tokenizer=tokenizer(bos=False, eos=False), ids=100, source="base")
    parts = {"x": ([{"a": "a b"}, {"a": ""}], [{"a": "a"}]), "y": ([{"a": "c d"}], [{"a": "e f"}])}
    found = virtual_clients.encode(parts, settings, base, counts := RowCounts())
    assert {c: tuple(len(side) for side in sides) for c, sides in found.items()} == {"x": (1, 0), "y": (1, 1)}
    assert counts.lines(8, 2) == [
        "2 of 5 rows were skipped: there is nothing to learn in them",
        "1 of 2 clients have no held-out row to measure on: 'x'",
        "the model never learns to stop: its tokenizer has no end token; write eos_token into its "
        "tokenizer_config.json, or an end of your own into [data], as in response = '{answer}\\n###'",
    ]
    with pytest.raises(DataError, match="client 'x' has no row to train on; all 1 were left out, empty or too long"):
        virtual_clients.encode({"x": ([{"a": ""}], [])}, settings, base)
    with pytest.raises(DataError, match="client 'x' has no row to train on; a smaller holdout"):
        virtual_clients.encode({"x": ([], [{"a": "a b"}])}, settings, base)
    with pytest.raises(DataError, match=r"f\.jsonl, client 'x', row 2: no field 'a'"):
        virtual_clients.encode({"x": ([{"a": "a b"}, {}], [])}, settings, base)


@pytest.mark.parametrize(
    ("eos", "response", "stops"), [(True, "{a}", True), (False, "{a}", False), (False, "{a} d", True)]
)
def test_a_model_that_never_learns_to_stop_is_said_once(eos, response, stops):
    settings = run_file.from_dict({"data": {"train": "f.jsonl", "prompt": "", "response": response, "max_length": 8}})
    base = SimpleNamespace(tokenizer=tokenizer(eos=eos), ids=100, source="base")
    parts = {c: ([{"a": "a b"}] * 3, [{"a": "a"}]) for c in "xyz"}
    virtual_clients.encode(parts, settings, base, counts := RowCounts())
    assert [line[:31] for line in counts.lines(8, 2)] == ([] if stops else ["the model never learns to stop:"])


def test_an_id_outside_the_embedding_is_said_with_both_sizes():
    settings = run_file.from_dict({"data": {"train": "f.jsonl", "prompt": "", "response": "{a}", "max_length": 8}})
    base = SimpleNamespace(tokenizer=tokenizer(bos=False, eos=False), ids=2, source="base")
    with pytest.raises(DataError, match=r"token id \d+ of the tokenizer of base, whose model has embeddings of 2 ids"):
        virtual_clients.encode({"x": ([{"a": "a b c"}], [])}, settings, base)


def classify(label, labels=("six", "four")):
    return data.encode_label(
        {"t": "what is two", "y": label},
        text="{t}",
        label_field="y",
        labels=labels,
        tokenizer=tokenizer(),
        max_length=2,
        where="row 1",
    )


def test_a_label_is_its_place_in_the_list():
    assert classify("four") == Example(classify(1).input_ids, 1, 2, prompt_lost=1)
    assert words(classify("four").input_ids) == "what is"
    assert classify(1, labels=["0", "2", "1"]).labels == 2


@pytest.mark.parametrize(("label", "place"), [(1, 0), ("1", 0), (2, 1), (0, None), ("0", None), (1.0, None)])
def test_a_number_is_a_name_where_names_read_as_numbers(label, place):
    """In ["1", "2"] the label 1 is the first class, and 0 is none, though it could be a place."""
    if place is not None:
        assert classify(label, labels=["1", "2"]).labels == place
        return
    with pytest.raises(DataError, match=r"row 1: 'y' is .* not a label"):
        classify(label, labels=["1", "2"])


@pytest.mark.parametrize("label", ["fuor", 2, -1, True])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(DataError, match=r"row 1: 'y' is .* not a label"):
        classify(label)


# --- batches

# --- real data


def test_real_records_decode_to_their_answers(shared):
    rows = records.read_rows(str(shared / "data/gsm8k/test.jsonl.gz"))[:20]
    real = AutoTokenizer.from_pretrained(shared / "models/tiny-llama-instruct")
    encode = partial(
        data.encode_generation,
        prompt="### Instruction:\n{question}\n\n[[### Input:\n{input}\n\n]]### Response:\n",
        response="{answer}",
        tokenizer=real,
        max_length=2000,
        max_prompt=None,
    )
    examples = data.encode_all(rows, encode, "gsm8k", counts := RowCounts())
    assert counts.lines(2000, 1) == []
    for row, example in zip(rows, examples, strict=True):
        learned = [label for label in example.labels if label != IGNORED]
        assert real.decode(learned) == row["answer"] + real.eos_token
        assert example.input_ids[0] == real.bos_token_id
