"""`fedft bench`: every bench runs and says what it should; and what makes ours fast, counted instead of timed."""

import functools
import json
import math
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedft.benchmarks import codec, measure, results
from fedft.benchmarks.measure import Act
from fedft.benchmarks.results import Result, Row
from fedft.cli import bench as cli_bench
from fedft.cli import main
from fedft.randomness import hadamard, hadamard_kernels
from fedft.randomness.hadamard import Hadamard

BLOCK = hadamard.BLOCK
TORCH = [
    pytest.param("torch"),
    pytest.param("numba", marks=pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")),
]


@functools.cache
def quick(name: str) -> Result:
    """A bench at its small size, once."""
    return import_module(f"fedft.benchmarks.{name.replace('-', '_')}").bench(quick=True, turns=1)


LONG = ("fleet", "start", "audit-curve")  # benches whose smallest setting takes seconds: processes, whole runs
EVERY = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in cli_bench.NAMES]


@pytest.mark.parametrize("name", EVERY)
def test_a_bench_says_what_it_compares_and_its_file_keeps_it(name):
    result = quick(name)
    assert result.name == name
    figures_are_numbers(result)
    times_faster_is_of_the_first_way_and_times_the_limit_of_the_limit(result)
    figures_survive_their_file(result)


def figures_are_numbers(result):
    assert "\n" not in result.title
    assert len({(r.what, r.way) for r in result.rows}) == len(result.rows) > 1
    for r in result.rows:
        given = [x for x in (r.seconds, r.spread, r.ratio, r.of_limit, *r.facts.values()) if x is not None]
        assert all(math.isfinite(x) for x in given), r
        assert r.seconds > 0 or r.facts, r
        assert r.ratio is None or r.ratio > 0


def times_faster_is_of_the_first_way_and_times_the_limit_of_the_limit(result):
    groups: dict[str, list[Row]] = {}
    for r in result.rows:
        groups.setdefault(r.what, []).append(r)
    compared = 0
    for rows in groups.values():
        timed = [r for r in rows if r.seconds]
        limit = next((r for r in timed if r.way == measure.LIMIT), None)
        for r in timed:
            assert r.ratio is None or r.ratio == pytest.approx(timed[0].seconds / r.seconds)
            assert r.of_limit is None or (limit and r.of_limit == pytest.approx(r.seconds / limit.seconds))
            compared += r.ratio is not None
    assert compared


def figures_survive_their_file(result):
    """And the file says on which machine they were found."""
    said = json.loads(json.dumps(results.as_json([result], (0.5, 1.5)), allow_nan=False))
    assert results.from_json(said) == [result]
    assert said["load"] == [0.5, 1.5]
    assert said["machine"]["cores"] >= 1
    assert said["machine"]["libraries"]["torch"] == torch.__version__


# How it is measured


def test_ways_take_turns_and_another_one_begins_each_time(monkeypatch):
    ran: list[str] = []
    monkeypatch.setattr(measure, "MOST", 1)
    measure.take_turns([Act("x", way, functools.partial(ran.append, way)) for way in "abc"], turns=2)
    assert "".join(ran) == "abc" + "bca" + "cab"


def test_a_part_is_scaled_to_the_whole(monkeypatch):
    """By the clock below every call of an act takes a second; the first turn, which takes longer, does not count."""
    monkeypatch.setattr(measure.time, "process_time", iter([0, 100, *(1000 + i for i in range(1000))]).__next__)
    rows = measure.take_turns([Act("x", "published", lambda: None, times=64), Act("x", "ours", lambda: None)], turns=3)
    assert [(r.seconds, r.spread) for r in rows] == [(64.0, 0.0), (1.0, 0.0)]
    assert [r.ratio for r in rows] == [1.0, 64.0]
    assert [r.of_limit for r in rows] == [None, None]


def test_what_was_set_for_measuring_is_set_back(monkeypatch):
    monkeypatch.delenv("FEDFT_KERNELS", raising=False)
    threads, seen = torch.get_num_threads(), []

    def note():
        seen.append((os.environ["FEDFT_KERNELS"], torch.get_num_threads()))
        raise KeyboardInterrupt

    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            measure.take_turns([Act("x", "ours", measure.with_kernels("torch", note))])
        assert seen == [("torch", 1)]
        assert torch.get_num_threads() == 2
        assert "FEDFT_KERNELS" not in os.environ
    finally:
        torch.set_num_threads(threads)


# The command


@pytest.fixture
def fedft(monkeypatch, capsys, tmp_path):
    """The command in a folder of its own: exit code, stdout, stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fedft", "bench", *args])
        with pytest.raises(SystemExit) as e:
            main.main()
        return int(e.value.code or 0), *capsys.readouterr()

    return run


def test_a_bench_prints_its_table_and_writes_its_figures(fedft, tmp_path):
    code, out, err = fedft("codec", "--quick", "--turns", "1")
    assert (code, err) == (0, "codec ...\n")
    for said in ("codec: messages in fp32", "times faster", "of the limit", "times smaller", "ternary:0.5", " ms "):
        assert said in out
    file = Path("fedft-runs/bench-codec-quick.json")
    assert str(file) in out
    (found,) = results.from_json(json.loads((tmp_path / file).read_text(encoding="utf-8")))
    assert [(r.what, r.way) for r in found.rows] == [(r.what, r.way) for r in quick("codec").rows]


def stand_in(monkeypatch: pytest.MonkeyPatch, **benches: Any) -> None:
    """These are all benches there are."""
    monkeypatch.setattr(cli_bench, "NAMES", tuple(benches))
    for name, bench in benches.items():
        monkeypatch.setitem(sys.modules, f"fedft.benchmarks.{name}", type("Module", (), {"bench": staticmethod(bench)}))


def small(name: str) -> Any:
    return lambda *, quick, turns: Result(name, "this and that", {"quick": quick, "turns": turns}, (Row("x", "y", 2),))


def test_all_runs_all_and_json_is_one_object(fedft, monkeypatch, tmp_path):
    stand_in(monkeypatch, one=small("one"), two=small("two"))
    code, out, err = fedft("all", "two", "--json", "--turns", "3", "--out", "to/here.json")
    assert (code, err) == (0, "one ...\ntwo ...\n")
    said = json.loads(out)
    assert [b["name"] for b in said["benches"]] == ["one", "two"]
    assert said["benches"][0]["settings"] == {"quick": False, "turns": 3}
    assert json.loads((tmp_path / "to" / "here.json").read_text(encoding="utf-8")) == said


def test_without_a_name_it_lists_them(fedft):
    code, out, _ = fedft()
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(cli_bench.NAMES)
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in out.splitlines())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("replai",), "did you mean 'replay'?"),
        (("replay", "--turns", "0"), "--turns"),
        (("replay", "--out", "."), "--out . cannot be written: Is a directory"),
        (("replay", "--out", "/dev/null/x.json"), "--out /dev/null/x.json cannot be written"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(fedft, args, said):
    code, out, err = fedft(*args)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_missing_compiler_is_one_line(fedft, monkeypatch):
    stand_in(monkeypatch, one=small("one"))
    monkeypatch.setattr(cli_bench, "find_spec", lambda name: None)
    code, _, err = fedft("one")
    assert code == 0
    assert err.startswith("numba is not installed")
    assert err.count("\n") == 2


def test_ctrl_c_keeps_what_was_measured(fedft, monkeypatch, tmp_path):
    def interrupted(**_):
        raise KeyboardInterrupt

    stand_in(monkeypatch, one=small("one"), two=interrupted)
    code, out, err = fedft("all", "--out", "kept.json")
    assert code == 130
    assert "this and that" in out
    assert fedft("two", "--out", "none.json")[2].endswith("fedft: interrupted, and nothing was measured\n")
    assert not (tmp_path / "none.json").exists()
    assert err.endswith("fedft: interrupted; what was measured is in kept.json\n")
    assert [b["name"] for b in json.loads((tmp_path / "kept.json").read_text(encoding="utf-8"))["benches"]] == ["one"]


# What makes ours fast


class Work(TorchDispatchMode):
    """Elements of all results of torch, those in place too."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.elements += out.numel()
        return out


def work(act) -> float:
    """Elements that torch works on in a call; what it keeps between calls is there already."""
    act()
    with Work() as counted:
        act()
    return counted.elements


@pytest.fixture
def torch_only(monkeypatch):
    monkeypatch.setenv("FEDFT_KERNELS", "torch")


def test_a_replay_by_torch_transforms_each_block_once_however_many_seeds(torch_only, monkeypatch):
    blocks, real = [], hadamard._walsh_hadamard
    monkeypatch.setattr(hadamard, "_walsh_hadamard", lambda x: (blocks.append(x.shape[1]), real(x))[1])
    x = torch.randn(40 * BLOCK + 5)
    for count in (1, 100, 4096):
        Hadamard(7, count).axpy_(x, "w", torch.ones(count))
        Hadamard(7, count).dot(x, "w")
    assert sum(blocks) == 6 * 41
    assert len(blocks) == 6


def test_the_work_of_torch_does_not_grow_with_the_seeds(torch_only):
    """A pass of a transform is an element per parameter; published code works on six for each seed."""
    x = torch.randn(64 * BLOCK)
    by_count = {}
    for count in (1, 4096):
        z, c = Hadamard(7, count), torch.ones(count)
        by_count[count] = [work(lambda: z.axpy_(x, "w", c)) / len(x), work(lambda: z.dot(x, "w")) / len(x)]  # noqa: B023
    assert by_count[4096] == pytest.approx(by_count[1], rel=0.02)
    assert max(by_count[4096]) < 30


def test_one_direction_by_torch_is_a_few_elements_per_parameter(torch_only):
    x, out, z = torch.randn(64 * BLOCK), torch.empty(64 * BLOCK), Hadamard(7, 4096)
    assert work(lambda: z.add_(x, "w", 5, 1e-3)) / len(x) < 5
    assert work(lambda: z.add_into(out, x, "w", 5, 1e-3)) / len(x) < 5


@pytest.mark.skipif(not find_spec("numba"), reason="numba is not installed")
def test_compiled_kernels_transform_each_block_once_whatever_the_window(monkeypatch):
    from fedft.randomness import hadamard_numba as kernels

    seen, real = [], kernels._axpy

    def counted(part, first, *rest):
        seen.extend(range(first, first + part.size // BLOCK))
        real(part, first, *rest)

    monkeypatch.setenv("FEDFT_KERNELS", "numba")
    x = torch.zeros(40 * BLOCK)
    Hadamard(7, 4096).axpy_(x, "w", torch.ones(4096))  # the first use tries them on a known answer, too
    monkeypatch.setattr(kernels, "_axpy", counted)
    Hadamard(7, 4096).axpy_(x, "w", torch.ones(4096), start=BLOCK // 2)
    assert sorted(seen) == list(range(41))


def test_a_direction_is_asked_of_the_kernels_once_per_tensor(monkeypatch):
    asked = []
    stub = type("Kernels", (), {"add_into": staticmethod(lambda out, x, *rest: asked.append(out.numel()))})
    monkeypatch.setattr(hadamard_kernels, "chosen", lambda x, cost=1: stub)
    z = Hadamard(7, 4096)
    z.add_(torch.zeros(100_001), "w", 5, 1.0)
    z.add_into(torch.zeros(7), torch.zeros(7), "w", 5, 1.0)
    assert asked == [100_001, 7]


def test_messages_are_as_small_as_promised():
    facts = {(r.what, r.way): r.facts for r in quick("codec").rows}
    assert facts["encode", "int4"]["times_smaller"] >= 9
    assert facts["encode", "ternary:0.5"]["times_smaller"] >= 20
    assert facts["FedKSeed, both", "both codecs"]["bytes"] <= 9000


def test_our_projection_keeps_what_a_projection_can():
    """An error below 1, where the published scale answers several times the size of what it was asked."""
    facts = {r.way: r.facts for r in quick("ferret").rows if r.what.startswith("kept")}
    assert facts["ours"]["error"] < 1 < facts["published"]["error"]
    assert facts["ours"]["cosine"] == pytest.approx(facts["limit"]["cosine"], rel=0.2)


def test_the_made_up_update_is_gaussian_by_row():
    for x in codec.made_up(2, 4, 4096).values():
        rows = x if x.shape[0] == 4 else x.t()
        assert ((rows / rows.std(1, keepdim=True)) ** 4).mean(1) == pytest.approx(torch.full((4,), 3.0), abs=0.6)
