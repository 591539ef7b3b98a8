"""The bench of guards, in its smallest setting: every guard has a round of its own, and is what its row says."""

from fedft.benchmarks import guards


def test_every_guard_has_its_row_and_masks_cost_their_bytes() -> None:
    found = {(r.what, r.way): r for r in guards.bench(quick=True, turns=1).rows}
    assert {*found} == {(name, way) for name, (_, ways) in guards.GUARDS.items() for way in ways}
    assert all(r.seconds > 0 < r.facts["step ms"] for r in found.values())
    sent = {key: r.facts["bytes"] for key, r in found.items()}
    for name in guards.GUARDS:
        assert sent[name, "secagg"] > sent[name, "none"] + 100
        assert abs(sent[name, "central-dp"] - sent[name, "none"]) < 100
        assert abs(sent[name, "secagg, central-dp"] - sent[name, "secagg"]) < 100
    steps = {way: found["ffa_lora", way].facts["step ms"] for way in ("none", "example-dp")}
    assert steps["example-dp"] > steps["none"], "records are clipped one by one"
