"""A checkpoint that lacks weights is trained on random numbers.

Reports: huggingface/peft#2367, #577, fabienfrfr/tptt#1, NVlabs/OmniDrive#43 ("newly initialized" only as a warning).

Input: a Llama checkpoint with untied output, saved through `AutoModel` (body only), so `lm_head.weight` is not in the
file. `[model] task = "causal-lm"`. Second input: the file lacks the MLP of one layer (a lost shard, a cut download).

Seen: exit 0, nothing said. The output layer (the MLP) is a random draw from the run's seed; the adapter is trained
around it and is worthless with any other load of the same base, which draws other numbers.

Expected: before any training, exit code 2 and one line that names (some of) the missing weights. What a task adds by
design (a classification head that is trained and saved) is no such case. A tied output that is not in the file is none.
"""

from small_runs import causal, check, finish, folder, jsonl, rows, simulate


def body_only():
    from transformers import AutoModel, AutoTokenizer

    at = folder("head")
    causal(at / "full", tied=False)
    AutoModel.from_pretrained(at / "full").save_pretrained(at / "base")
    AutoTokenizer.from_pretrained(at / "full").save_pretrained(at / "base")
    return at


def layer_lost():
    from safetensors.torch import load_file, save_file

    at = folder("layer")
    causal(at / "base", tied=False)
    file = at / "base" / "model.safetensors"
    save_file({n: x for n, x in load_file(file).items() if "layers.1.mlp" not in n}, file, {"format": "pt"})
    return at


for name, make, word in (("body only", body_only, "lm_head"), ("an MLP lost", layer_lost, "layers.1.mlp")):
    at = make()
    jsonl(at / "d.jsonl", rows("abc"))
    done = simulate(at, {"model": {"id": str(at / "base")}, "data": {"train": str(at / "d.jsonl")}})
    check(f"{name}: refused with code 2", done.code == 2 and not done.traceback, f"code {done.code}: {done.last()}")
    check(f"{name}: the line names what is missing", word in done.err, done.last())

at = folder("tied")
causal(at / "base", tied=True)
jsonl(at / "d.jsonl", rows("abc"))
done = simulate(at, {"model": {"id": str(at / "base")}, "data": {"train": str(at / "d.jsonl")}})
check("a tied output is not missing", done.code == 0, done.last())
finish()
