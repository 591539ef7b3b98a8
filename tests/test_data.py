"""Records become the batches they say, and every record has one owner."""

import gzip
import json
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedft import data
from fedft.data import IGNORED, Example
from fedft.errors import DataError

WORDS = "what is two and four six a b c d e f g h".split()


def tokenizer(bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """One token for every word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>"}
    special |= {"bos_token": "<s>"} if bos else {}
    special |= {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special)


def encode(prompt="what is", response="a b c", *, max_length=32, max_prompt=None, **special) -> Example:
    return data.encode_generation(
        {"q": prompt, "a": response},
        prompt="{q}" if prompt else "",
        response="{a}",
        tokenizer=tokenizer(**special),
        max_length=max_length,
        max_prompt=max_prompt,
        where="here",
    )


def words(ids) -> str:
    return tokenizer().decode([i for i in ids if i != IGNORED])


# --- reading


ROWS = [{"q": "what\nis", "n": "1"}, {"q": 'say "é"', "n": "2"}]
FILES = {
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "rows.jsonl.gz": "\ufeff" + "\n".join(map(json.dumps, ROWS)),
    "rows.json": json.dumps(ROWS, indent=1),
    "rows.csv": 'q,n\r\n"what\nis",1\r\n"say ""é""",2\r\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(tmp_path, name):
    path = tmp_path / name
    data_bytes = FILES[name].encode()
    path.write_bytes(gzip.compress(data_bytes) if name.endswith(".gz") else data_bytes)
    assert data.read_rows(str(path)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"x": 1}\n\n{"x": }\n', "line 3: not JSON"),
        ("a.jsonl", b'{"x": 1}\n[1]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', "line 2: not UTF-8"),
        ("a.jsonl", b'{"x": 1}\n' + b"[" * 100_000, "line 2: not JSON that we read"),
        ("a.json", b'[{"x": 1},\n {"x": }]', "line 2: not JSON"),
        ("a.json", b'{"x": 1}', "expected a list"),
        ("a.json", b'[{"x": 1}, 7]', "record 2: expected an object"),
        ("a.csv", b'x,y\n"1\n2",3\n4\n', "line 4: 1 cells, the header has 2"),
        ("a.csv", b'x,y\n1,2\n"3"4,5\n', "line 3: not CSV"),
        ("a.csv", b"x,x\n1,2\n", "line 1: expected a header"),
        ("a.jsonl.gz", b'{"x": 1}\n', "cannot be read behind line 0"),
        ("a.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 9)[:-6], "cannot be read behind line"),
        ("a.jsonl", b"", "holds no records"),
        ("a.json", b"", "holds no records"),
        ("a.csv", b"x,y\n", "holds no records"),
        ("a.parquet", b"PAR1", "expected a file .jsonl"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as e:
        data.read_rows(str(tmp_path / name))
    assert name in str(e.value)
    assert "\n" not in str(e.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        data.read_rows(str(tmp_path / "none.jsonl"))


def test_a_hub_id_offline_is_one_line():
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as e:
        data.read_rows("nobody/nothing:train")
    assert "\n" not in str(e.value)


def test_importing_the_module_imports_neither_datasets_nor_flower_nor_transformers():
    code = "import sys, fedft.data; print({'datasets', 'flwr_datasets', 'flwr', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- templates


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Q: {q}!", "Q: {n} [[x]]!"),
        ("{n}{none}", "7"),
        ("{{q}} {two words}", "{q} 2"),
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
        assert data.fill(template, row, "here") == text
    else:
        with pytest.raises(DataError, match=r"here: (no field|field 'items' is a list)"):
            data.fill(template, row, "here")


def test_an_unknown_field_names_those_there_are():
    with pytest.raises(DataError, match="row 3: no field 'prompt'; there are question, answer"):
        data.fill("{prompt}", {"question": 1, "answer": 2}, "row 3")


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
    plain = partial(
        data.encode_generation,
        prompt="",
        response="{a}",
        tokenizer=tokenizer(bos=False, eos=False),
        max_length=8,
        max_prompt=None,
    )
    examples, skipped = data.encode_all(rows, plain, "rows")
    assert [words(e.input_ids) for e in examples] == ["a b", "c d"]
    assert skipped == 2
    with pytest.raises(DataError, match="rows, row 2: no field 'a'"):
        data.encode_all([{"a": "a"}, {}], plain, "rows")


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
    assert classify("four") == Example(classify(1).input_ids, 1, 2)
    assert words(classify("four").input_ids) == "what is"
    assert classify(1, labels=["0", "2", "1"]).labels == 2


@pytest.mark.parametrize("label", ["fuor", 2, -1, True])
def test_a_label_that_is_none_is_refused(label):
    with pytest.raises(DataError, match="row 1: 'y' is .* not a label"):
        classify(label)


# --- batches

EXAMPLES = [Example([10 + i] * (1 + i % 3), [IGNORED] * (i % 3) + [10 + i], i % 3) for i in range(7)]


def test_padding_is_neither_attended_to_nor_learned():
    batch = data.collate(EXAMPLES[:3], pad_id=9)
    assert batch["input_ids"].tolist() == [[10, 9, 9], [11, 11, 9], [12, 12, 12]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[10, -100, -100], [-100, 11, -100], [-100, -100, 12]]
    assert data.collate([Example([5], 2, 1), Example([5, 6], 0, 2)], 0)["labels"].tolist() == [2, 0]
    assert {t.dtype for t in batch.values()} == {torch.int64}


def drawn(n, size, steps, seed=3):
    found = data.batches(EXAMPLES[:n], batch_size=size, steps=steps, seed=seed, pad_id=0)
    return [batch["input_ids"][:, 0].tolist() for batch in found]


def test_batches_depend_on_the_seed_and_on_no_global_generator():
    before = torch.random.get_rng_state()
    first = drawn(7, 2, 9)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert drawn(7, 2, 9) == first
    assert drawn(7, 2, 9, seed=4) != first


def test_every_row_comes_once_per_shuffle_and_batches_are_full():
    rows = [row for batch in drawn(7, 2, 7) for row in batch]
    assert sorted(rows[:7]) == sorted(rows[7:]) == list(range(10, 17))
    assert rows[:7] != rows[7:]


def test_a_client_with_few_rows_gives_all_of_them_every_time():
    assert [sorted(batch) for batch in drawn(3, 8, 4)] == [[10, 11, 12]] * 4
    assert drawn(3, 8, 0) == []
    with pytest.raises(DataError, match="no example"):
        drawn(0, 8, 1)


# --- who holds what


@pytest.mark.parametrize(("n", "fraction", "test"), [(326, 0.2, 65), (100, 0.29, 29), (3, 0.2, 0), (4, 0.0, 0)])
def test_the_held_out_part_is_a_floor_and_nothing_is_lost(n, fraction, test):
    rows = [{"i": i} for i in range(n)]
    train, held = data.hold_out(rows, fraction, seed=0)
    assert len(held) == test
    assert sorted([*train, *held], key=lambda row: row["i"]) == rows
    assert all(a["i"] < b["i"] for part in (train, held) for a, b in pairwise(part))
    assert data.hold_out(rows, fraction, seed=0) == (train, held)


MANY = [{"who": f"{i % 5} ", "i": i} for i in range(60)]


def cut(how, rows=MANY, *, field="who", clients=4, alpha=0.5, seed=1):
    return data.partition(rows, how=how, field=field, clients=clients, alpha=alpha, seed=seed)


@pytest.mark.parametrize("how", ["natural", "iid", "dirichlet"])
def test_every_row_has_one_client_and_the_seed_decides(how, capfd):
    parts = cut(how)
    assert sorted(i for part in parts.values() for i in part) == list(range(60))
    assert all(part and part == sorted(part) for part in parts.values())
    assert parts == cut(how)
    assert (parts == cut(how, seed=-2)) == (how == "natural")
    assert capfd.readouterr() == ("", "")  # no progress bar of the partitioner


def test_natural_clients_are_called_by_their_value_as_text():
    parts = cut("natural", [{"who": w} for w in (3, "3", "é ", True, 3.0)])
    assert parts == {"3": [0, 1], "3.0": [4], "True": [3], "é ": [2]}


def test_iid_clients_are_of_equal_size_and_not_in_the_order_of_the_file():
    parts = cut("iid", clients=7)
    assert list(parts) == [f"client-{k}" for k in range(7)]
    assert {len(part) for part in parts.values()} == {8, 9}
    assert parts["client-0"] != list(range(9))


def test_a_small_alpha_skews_the_labels_more():
    def skew(alpha):
        parts = cut("dirichlet", MANY * 10, alpha=alpha)
        return sum(max(sum(i % 5 == k for i in part) for k in range(5)) / len(part) for part in parts.values()) / 4

    assert skew(1000.0) < 0.3 < skew(0.1)


def test_a_dirichlet_cut_that_leaves_a_client_without_rows_ends():
    with pytest.raises(DataError, match=r"some of 30 clients got no row at alpha = 0\.001"):
        cut("dirichlet", clients=30, alpha=0.001)


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
@pytest.mark.parametrize("clients", [0, 61, None])
def test_a_wrong_number_of_clients_is_refused(how, clients):
    with pytest.raises(DataError, match="expected 1 to 60 clients"):
        cut(how, clients=clients)


@pytest.mark.parametrize("rows", [[{"who": 1}, {}], [{"who": 1}, {"who": None}]])
def test_a_row_without_the_field_is_named(rows):
    with pytest.raises(DataError, match="row 2 has no 'who'"):
        cut("natural", rows)


# --- real data


def test_real_records_decode_to_their_answers(shared):
    rows = data.read_rows(str(shared / "data/gsm8k/test.jsonl.gz"))[:20]
    real = AutoTokenizer.from_pretrained(shared / "models/tiny-llama-instruct")
    encode = partial(
        data.encode_generation,
        prompt="### Instruction:\n{question}\n\n[[### Input:\n{input}\n\n]]### Response:\n",
        response="{answer}",
        tokenizer=real,
        max_length=2000,
        max_prompt=None,
    )
    examples, skipped = data.encode_all(rows, encode, "gsm8k")
    assert skipped == 0
    for row, example in zip(rows, examples, strict=True):
        learned = [label for label in example.labels if label != IGNORED]
        assert real.decode(learned) == row["answer"] + real.eos_token
        assert example.input_ids[0] == real.bos_token_id


def test_the_tasks_of_natural_instructions_are_clients(shared):
    rows = data.read_rows(str(shared / "data/natural_instructions/train.jsonl.gz"))
    parts = cut("natural", rows, field="task")
    assert len(parts) == 46
    assert sum(map(len, parts.values())) == 7153
