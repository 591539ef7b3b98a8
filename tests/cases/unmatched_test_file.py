"""A test file none of whose rows belongs to a client is dropped, and the run reports no loss.

Reports: Pengxin-Guo/FedSA-LoRA#6, alibaba/FederatedScope#725, flwrlabs/flower#7693 (clients without evaluation rows).

Input: `[data] test` with rows whose client field is missing, or whose names differ in case from the training file's.

Seen: code 0, `-` in place of loss and accuracy in every line, `"final": {}` in summary.json, nothing said.

Expected: with code 2, or a line on stderr, it is said that none of the N rows of the test file belongs to a client
(with a name of each side); where only some do not, how many. A run whose clients have no held-out row at all (all too
small for `holdout`) says so too.
"""

from small_runs import causal, check, finish, folder, jsonl, rows, simulate

at = folder("test")
causal(at / "base")
jsonl(at / "d.jsonl", rows("abc"))
held = rows("abc", 4)
for name, made in (
    ("no owner", [{k: v for k, v in r.items() if k != "client"} for r in held]),
    ("other case", [{**r, "client": r["client"].upper()} for r in held]),
):
    jsonl(at / "t.jsonl", made)
    data = {"train": str(at / "d.jsonl"), "test": str(at / "t.jsonl")}
    done = simulate(at, {"model": {"id": str(at / "base")}, "data": data}, out=name.replace(" ", ""))
    told = [x for x in done.err.splitlines() if "t.jsonl" in x or "held" in x.lower() or "12" in x]
    check(f"{name}: it is said", bool(told) and not done.traceback, f"code {done.code}; stderr: {done.err[-150:]!r}")
jsonl(at / "one.jsonl", rows("abcdef", 1))
done = simulate(at, {"model": {"id": str(at / "base")}, "data": {"train": str(at / "one.jsonl")}}, out="one")
check(
    "nobody holds out a row: it is said",
    "held" in done.err.lower() or "holdout" in done.err,
    f"stderr {done.err[-150:]!r}",
)
finish()
