"""Text of a record that becomes a control token is counted and said; that of a template is meant."""

from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from fedft import run_file
from fedft.data import client_datasets
from fedft.data.row_counts import RowCounts
from fedft.simulations import run as runs

CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}" + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    found = AutoTokenizer.from_pretrained(tiny_base)
    more = ["<|im_start|>", "<|im_end|>"]
    found.add_special_tokens({"eos_token": "</s>", "additional_special_tokens": more})
    found.add_tokens(["<think>"])  # a token of its own, and no control token
    return found


def counted(tokenizer, data, train, test=(), **tables) -> RowCounts:
    config = run_file.from_dict({"data": {"train": "f", "max_length": 99, **data}, **tables})
    base = SimpleNamespace(tokenizer=tokenizer, ids=9999, source="base")
    counts = RowCounts()
    half = len(train) // 2
    client_datasets.encode({"x": (train[:half], list(test)), "y": (train[half:], [])}, config, base, counts)
    return counts


def turns(*said):
    return [{"role": role, "content": text} for role, text in zip(("user", "assistant"), said, strict=True)]


def test_values_that_hold_a_control_token_are_counted_by_row(tokenizer):
    rows = [{"q": "a </s> b </s>", "a": "<|im_end|>"}, {"q": "what", "a": "x<|im_end|>"}, {"q": "a", "a": "b"}]
    rows += [{"q": "< /s> <think> </S>", "a": "b", "note": "</s>"}]  # nothing of it is a control token that is given
    found = counted(tokenizer, {"prompt": "{q}", "response": "{a}</s>"}, rows, [{"q": "</s>", "a": "b"}])
    assert (found.with_control_tokens, found.control_tokens) == (3, ["</s>", "<|im_end|>"])
    (line,) = [line for line in found.lines(99, 2) if "control" in line]
    assert line.startswith("3 of 5 rows have '</s>', '<|im_end|>' in their own text, which the tokenizer reads as")


def test_conversations_and_classes_too_but_no_template(tokenizer):
    said = [{"m": turns("a", "b<|im_end|>")}, {"m": turns("a", "b")}, {"m": turns("a", "b"), "tools": ["</s>"]}]
    said[2]["tools"] = [{"name": "</s>"}]
    data = {"messages": "m", "chat_template": CHATML}
    assert counted(tokenizer, data, said).with_control_tokens == 2
    assert counted(tokenizer, data, said[1:2] * 2).with_control_tokens == 0
    classes = {"model": {"task": "sequence-classification", "labels": ["</s>", "b"]}}
    rows = [{"text": "a </s>", "label": "b"}, {"text": "a", "label": "</s>"}]
    assert counted(tokenizer, {}, rows, **classes).with_control_tokens == 1
    assert counted(tokenizer, {"tokens": "t"}, [{"t": [1, 2], "prompt": "</s>"}] * 2).with_control_tokens == 0


def test_a_run_says_it_before_round_1_and_keeps_it(tiny_base, tmp_path, caplog):
    end = AutoTokenizer.from_pretrained(tiny_base).eos_token
    (tmp_path / "rows.csv").write_text(f"client,prompt,response\nx,a,b\nx,c{end},d\n")
    config = run_file.from_dict(
        {
            "model": {"id": str(tiny_base)}, "data": {"train": str(tmp_path / "rows.csv"), "holdout": 0.0},
            "strategy": {"name": "fedit"}, "local": {"steps": 1}, "server": {"rounds": 1}, "clients": {"rank": 2},
        }
    )  # fmt: skip
    rows = runs.simulate(config, out=tmp_path / "run").summary["rows"]
    assert (rows["with_control_tokens"], rows["control_tokens"]) == (1, [end])
    assert sum(f"1 of 2 rows have {end!r} in their own text" in m for m in caplog.messages) == 1
