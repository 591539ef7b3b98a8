"""The tokenizer knows ids that the model has no embedding for.

Reports: huggingface/transformers#12763, huggingface/tokenizers#1609, fc2869/lo-fit#1, georgesung/llm_qlora#7,
huggingface/peft#1932 (a pad or chat token is added to the tokenizer, the model is not resized).

Input: a base with 258 embedding rows whose tokenizer has `[PAD]` = 258 as padding token, which is very common.

Seen: every batch with rows of unlike length fails inside the embedding; the run asks three times and pauses with code
75 ("0 of 3 updates admitted ... run again to continue"), the reason only in a warning `client_error: IndexError`.

Expected: padding is masked, so its value does not matter and any id inside the embedding would do: such a base trains
as if nothing were wrong (as the same base does with a pad id inside), or it is refused at load with code 2 and one line
that says both sizes. Never a pause that says "run again".
"""

from small_runs import causal, check, finish, folder, jsonl, rows, simulate, summary


def run(outside: bool):
    from transformers import AutoTokenizer

    at = folder("pad")
    causal(at / "base", pad=None, vocab=258)
    if outside:
        t = AutoTokenizer.from_pretrained(at / "base")
        t.add_special_tokens({"pad_token": "[PAD]"})  # 258, one behind the last row
        t.save_pretrained(at / "base")
    jsonl(at / "d.jsonl", [{**r, "response": r["response"] * (1 + i % 3)} for i, r in enumerate(rows("abc"))])
    done = simulate(at, {"model": {"id": str(at / "base")}, "data": {"train": str(at / "d.jsonl")}})
    return done, (summary(at)["final"].get("loss") if done.code == 0 else None)


inside, want = run(False)
outside, got = run(True)
check("the same base with its end token as padding trains", inside.code == 0, inside.last())
if outside.code == 0:
    check("padding outside: the same loss", got is not None and abs(got - want) < 1e-4, f"{got} for {want}")
else:
    line = outside.err.strip().splitlines()
    check("padding outside: refused with code 2", outside.code == 2, f"code {outside.code}: {outside.last()}")
    check("padding outside: one line with both sizes", len(line) == 1 and "258" in line[0], outside.last())
finish()
