"""Virtual devices: dealt out by name and seed, on and off by their traces, refused where they are none."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fedft import run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.simulations import devices
from fedft.simulations.availability import Trace, traces
from fedft.simulations.devices import Device

CLASSES = [{"share": 30, "flops": 1e9}, {"share": 40, "flops": 4e8, "up": 1e5}, {"share": 10, "flops": 2e8}]
EIGHTY = [f"client-{n}" for n in range(80)]


def config(seed: int = 0, **table: Any) -> RunConfig:
    return run_file.from_dict({"server": {"seed": seed}, "clients": {"devices": {"classes": CLASSES, **table}}})


def test_classes_have_their_shares_whatever_the_order_of_the_names() -> None:
    dealt = devices.dealt(config(), EIGHTY)
    assert Counter(d.flops for d in dealt.values()) == {1e9: 30, 4e8: 40, 2e8: 10}
    assert devices.dealt(config(), EIGHTY[::-1]) == dealt
    assert devices.dealt(config(seed=1), EIGHTY) != dealt
    assert devices.dealt(RunConfig(), EIGHTY) == {}


def test_a_client_says_what_it_was_dealt_unless_that_is_hidden() -> None:
    classes = [{"flops": 1e9, "memory": "1MiB"}, {"flops": 4e8, "up": 1e5, "down": 2e5}]
    said, dealt = devices.profiles(config(classes=classes), EIGHTY), devices.dealt(config(classes=classes), EIGHTY)
    assert [dict(p) for p in {tuple(p.items()) for p in said.values() if "up" in p}] == [
        {"flops": 4e8, "up": 1e5, "down": 2e5}
    ]
    assert all(said[c]["flops"] == dealt[c].flops and ("memory" in said[c]) == (dealt[c].flops == 1e9) for c in EIGHTY)
    assert devices.profiles(config(hidden=True), EIGHTY) == devices.profiles(RunConfig(), EIGHTY) == {}


def test_traces_are_dealt_out_in_turn_and_apart_from_the_classes() -> None:
    three = [[[0, n + 1], [n + 2, 10]] for n in range(3)]
    dealt = devices.dealt(config(availability=three), EIGHTY)
    assert sorted(Counter(d.trace for d in dealt.values()).values()) == [26, 27, 27]
    assert all(len({d.trace for d in dealt.values() if d.flops == of["flops"]}) == 3 for of in CLASSES)


def test_a_turn_takes_down_work_and_up() -> None:
    device = Device(flops=100.0, up=10.0, down=20.0)
    assert device.answers_at(5.0, down=40, work=300.0, up=50) == 5 + 2 + 3 + 5
    assert Device(flops=100.0).answers_at(5.0, down=10**9, work=300.0, up=10**9) == 8.0


def test_jitter_and_dropouts_are_of_client_and_round_and_seed_alone() -> None:
    table = config(jitter=0.25, dropout=0.1).clients.devices
    assert table is not None
    drawn = [devices.jitter(table, 3, client, round) for client in EIGHTY for round in range(20)]
    assert 0.75 <= min(drawn) < 0.76
    assert 1.24 < max(drawn) < 1.25
    assert len(set(drawn)) == len(drawn)
    assert devices.jitter(table, 3, "client-7", 2) == devices.jitter(table, 3, "client-7", 2)
    gone = [devices.vanishes(table, 3, client, round) for client in EIGHTY for round in range(20)]
    assert 120 < sum(gone) < 200
    assert gone != [devices.vanishes(table, 4, client, round) for client in EIGHTY for round in range(20)]


def at_work(trace: Trace, start: int, seconds: int) -> int:
    """`Trace.after` second by second, of a trace of whole seconds."""
    while seconds:
        seconds -= any(a <= start % trace.period < b for a, b in trace.spans)
        start += 1
    return start


@pytest.mark.parametrize("trace", [Trace(((0, 3), (5, 9)), 9), Trace(((2, 3),), 10), Trace(((0, 4),), 4)])
def test_a_device_works_while_it_is_on(trace: Trace) -> None:
    for start in range(25):
        for seconds in range(1, 40):
            assert trace.after(start, seconds) == at_work(trace, start, seconds)
        off = trace.next_off(start)
        assert off > start
        assert off % trace.period in {end % trace.period for _, end in trace.spans}
        assert not any(start < n < off and n % trace.period in {b for _, b in trace.spans} for n in range(60))
    assert trace.on(trace.spans[0][0])
    assert Trace().on(1e9)
    assert trace.after(0, 1e12) > 1e12 - 1  # not walked through period by period


def test_traces_may_stand_in_a_file_beside_the_run_file(tmp_path: Path) -> None:
    (tmp_path / "traces.json").write_text(json.dumps([[[0, 60]], [[30, 90]]]))
    text = '[clients.devices]\nclasses = [{flops = 1e9}]\navailability = "traces.json"\nperiod_s = 100\n'
    (tmp_path / "run.toml").write_text(text)
    c = run_file.load(tmp_path / "run.toml")
    devices.check_devices(c)
    assert {d.trace for d in devices.dealt(c, EIGHTY).values()} == {
        Trace(((0.0, 60.0),), 100.0),
        Trace(((30.0, 90.0),), 100.0),
    }
    assert run_file.from_dict(c.to_dict()) == c


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"classes": []}, r"classes is \[\], wanted a table at least"),
        ({"classes": [{"flops": 0}]}, r"expected \[clients.devices\] classes\[0\] flops > 0, got 0"),
        ({"classes": [{"flops": 1, "share": -1}]}, r"classes\[0\] share > 0, got -1"),
        ({"classes": [{"flops": 1}, {"flops": 1, "up": 0}]}, r"classes\[1\] up > 0"),
        ({"classes": [{"flops": 1, "memory": "2 apples"}]}, r"memory is '2 apples', wanted bytes, as 2000000000 or"),
        ({"classes": [{"flops": 1, "memory": "0GiB"}]}, r"classes\[0\] memory > 0"),
        ({"jitter": 1.0}, "jitter"),
        ({"dropout": 1.5}, "dropout"),
        ({"period_s": 5.0}, "there is no availability that it repeats"),
        ({"availability": [[[0, 9]]], "period_s": 5.0}, r"availability\[0\] ends at 9 s, behind period_s = 5"),
        ({"availability": [[[3, 2]]]}, r"availability\[0\] has \[3.0, 2.0\], wanted \[from, to\] in seconds"),
        ({"availability": [[[0, 2], [2, 3]]]}, r"has \[2.0, 3.0\], wanted"),
        ({"availability": [[]]}, "a device that is never on"),
        ({"availability": "nowhere.json"}, "nowhere.json: No such file"),
    ],
)
def test_what_makes_no_sense_is_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        devices.check_devices(config(**table))
    assert "\n" not in str(e.value)
    assert "clients.devices" in str(e.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"devices": 3}, r"\[clients\] devices is 3, wanted a table"),
        ({"devices": {}}, "needs 'classes'"),
        ({"devices": {"classes": {"flops": 1}}}, "wanted list"),
        ({"devices": {"classes": [1]}}, r"classes\[0\] is 1, wanted a table"),
        ({"devices": {"classes": [{"flop": 1}]}}, "did you mean 'flops'"),
        ({"devices": {"classes": [{"up": 1}]}}, r"classes\[0\] needs 'flops'"),
    ],
)
def test_an_unknown_key_or_another_type_is_one_line(table: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run_file.from_dict({"clients": table})


@pytest.mark.parametrize("text", ["no JSON", "{}", "[]", "[[[0]]]", '[[["a", 1]]]', "[3]"])
def test_a_file_that_holds_no_traces_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.json"):
        traces(str(tmp_path / "t.json"), None)
