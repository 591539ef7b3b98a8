"""A client's name leads out of its folder.

Kind: text of users' data used as a path (many reports of the kind; e.g. mulesoft/mule#13331,
area9innovation/flow9#265).

Input: clients called "..", ".", "a/b", and one with 300 letters, with a strategy that keeps something for each client
(`scaffold`, `fedsa_lora`), `fedft simulate`.

Seen: "a/b" is fine. What ".." keeps is written into the run folder itself, what "." keeps into `clients/`; an empty
name does the same as ".", so the two would share a folder and overwrite each other's variates. 300 letters (or 100 of
two bytes): the client fails with "File name too long" in every round, is refused each time, and the run still ends with
code 0.

Expected: whatever the name, what a client keeps lies in a folder of its own inside `clients/`, no two share one (`fedft
split` has such a rule already), or the name is refused with code 2 before the run. All clients take part.
"""

from small_runs import causal, check, finish, folder, jsonl, lines, rows, simulate

at = folder("names")
causal(at / "base")
for i, names in enumerate((["a/b", "b"], ["..", "b"], [".", "", "b"], ["x" * 300, "b", "c"], ["x" * 300, "x" * 301])):
    jsonl(at / "d.jsonl", rows(names))
    run, short = f"r{i}", [n[:6] for n in names]
    done = simulate(
        at,
        {
            "model": {"id": str(at / "base")},
            "strategy": {"name": "scaffold"},
            "local": {"optimizer": "sgd", "steps": 1},
            "server": {"rounds": 1},
            "data": {"train": str(at / "d.jsonl")},
        },
        out=run,
    )
    if done.code == 2:
        check(
            f"{short}: refused in one line", not done.traceback and len(done.err.strip().splitlines()) == 1, done.last()
        )
        continue
    check(f"{short}: code 0", done.code == 0, done.last()[:150])
    kept = {p.parent.relative_to(at / run) for p in (at / run).rglob("kept-*")}
    inside = all(p.parts[:1] == ("clients",) and len(p.parts) > 1 for p in kept)
    check(f"{short}: a folder for each client", inside and len(kept) == len(names), str(sorted(map(str, kept)))[:200])
    took = lines(at, run)[-1].get("participants", [])
    check(f"{short}: all take part", len(took) == len(names), f"{len(took)} of {len(names)}")
finish()
