"""NaN in a record becomes the word "nan".

Reports: biolab/orange3-prototypes#177, alteryx/evalml#2071, huggingface/datasets#4467 (the other way round).

Input: JSON lines as Python's and pandas' writers make them, with the bare word `NaN` where a value is missing.

Seen: code 0. A response NaN teaches the model to answer "nan"; a client NaN makes a client called "nan".

Expected: JSON has no NaN. Either it is what null is (empty text in a template; a row without an owner refused where it
names the client), or the row is refused with code 2 and its line. The same for Infinity. Never the letters "nan".
"""

from small_runs import causal, check, finish, folder, jsonl, lines, rows, simulate

at = folder("nan")
causal(at / "base")


def run(name, field, value):
    made = rows("abc")
    made[14][field] = value
    jsonl(at / f"{name}.jsonl", made)
    return simulate(at, {"model": {"id": str(at / "base")}, "data": {"train": str(at / f"{name}.jsonl")}}, out=name)


def digest(name):
    return lines(at, name)[-1]["state_digest"]


done, null = run("nan", "response", float("nan")), run("null", "response", None)
if done.code == 0:
    check("a response NaN is learned as null is", null.code == 0 and digest("nan") == digest("null"), "as other text")
else:
    check("a response NaN is refused at its line", done.code == 2 and "15" in done.last(), done.last())
done = run("owner", "client", float("nan"))
who = lines(at, "owner")[1]["participants"] if done.code == 0 else []
check("no client is called nan", done.code == 2 or "nan" not in who, f"code {done.code}, clients {who}")
finish()
