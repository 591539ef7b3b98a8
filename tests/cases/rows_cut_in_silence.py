"""Rows lose most of what is to be learned, or are left out, and nobody is told.

Reports: hiyouga/LlamaFactory#3995, #3143, #5820; huggingface/trl#6668, #1053; MakazhanAlpamys/Soup#532;
unslothai/unsloth#2095.

Input 1: every prompt is longer than `[data] max_length` (64), responses have 6 to 7 tokens. Input 2: a tokenizer
without an end token, one response in three is empty: nothing can be learned of it.

Seen: no NaN (one token of the response always stays: good), code 0, but not one word: 36 of 36 rows were cut to one
learned token (input 1); 12 of 36 rows were skipped (input 2: the line is logged at INFO, and the command shows
WARNING).

Expected: one line on stderr (and the numbers in summary.json or metrics.jsonl, whatever name) that says how many rows
were cut, how many of the learned tokens are left, and how many rows were skipped. Nothing is said where nothing was
cut.
"""

import re

from small_runs import causal, check, finish, folder, jsonl, rows, simulate

at = folder("cut")
causal(at / "base")
causal(at / "endless", eos=None)


def said(name, base, made):
    jsonl(at / f"{name}.jsonl", made)
    done = simulate(at, {"model": {"id": str(at / base)}, "data": {"train": str(at / f"{name}.jsonl")}}, out=name)
    assert done.code == 0, done.err
    return done.err


plain = rows("abc")
check("nothing cut, nothing said", not re.search(r"\b36\b", said("plain", "base", plain)))
err = said("long", "base", [{**r, "prompt": "x " * 200 + r["prompt"]} for r in plain])
check("36 rows cut: a line with the number", bool(re.search(r"\b36\b", err)), err[-200:] or "nothing on stderr")
err = said("empty", "endless", [{**r, "response": "" if i % 3 == 0 else r["response"]} for i, r in enumerate(plain)])
check("12 rows skipped: a line with the number", bool(re.search(r"\b12\b", err)), err[-200:] or "nothing on stderr")
finish()
