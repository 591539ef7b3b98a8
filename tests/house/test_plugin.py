"""Values from outside the package (`plugin_example/`), one of each kind: they keep their contracts, under both of their
names, and a run file that names them runs. A contract is open only if a stranger can stand on it."""

import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import fedft
from fedft import registry, run_file, strategies
from fedft.cli import main
from fedft.errors import ConfigError, RunPaused
from fedft.testing import strategy_contract
from fedft.update import Update

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
DECLARED = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
KINDS = {r.group: r.kind for r in registry.REGISTRIES.values()}
VALUES = [(KINDS[group], name, where) for group, points in DECLARED.items() for name, where in points.items()]
ROWS = [
    {
        "client": "ab"[n % 2] if n < 40 else "a", "prompt": f"the {n % 5} of {n % 3} is", "response": f" {n % 5}",
        "label": n % 2,
    }
    for n in range(56)
]  # fmt: skip


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, allow: Callable[..., None]) -> Iterator[None]:
    """The examples' folder on the path, as after `pip install -e`, but for its metadata; a run file may name them."""
    monkeypatch.syspath_prepend(EXAMPLE)
    allow(
        "nobody:nothing",
        "ia3:IA3",
        "lora_xs:LoRAXS",
        "thumbs:Thumbs",
        *(f"{f.stem}:{f.stem}" for f in EXAMPLE.glob("*.py")),
    )
    yield
    for file in EXAMPLE.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def installed(importable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata that pip writes for the examples' pyproject.toml."""
    info = tmp_path / "fedft_examples-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedft-examples\nVersion: 0.1.0\n")
    groups = (f"[{g}]\n" + "".join(f"{n} = {w}\n" for n, w in points.items()) for g, points in DECLARED.items())
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(tmp_path)


def check(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.app, ["check", *words])
    return done.exit_code, done.output


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("kind", "name", "where"), VALUES, ids=[name for _, name, _ in VALUES])
def test_a_value_of_an_installed_package_keeps_the_contract_of_its_kind(kind: str, name: str, where: str) -> None:
    known = registry.REGISTRIES[kind]
    assert known.names()[name] == where
    code, said = check(kind, name)
    assert code == 0, said
    assert "ok" in said
    assert "FAIL" not in said


@pytest.mark.usefixtures("importable")
def test_a_value_can_be_named_by_module_before_it_is_installed() -> None:
    for kind, name, where in VALUES:
        assert name not in registry.REGISTRIES[kind].names()
        assert callable(registry.REGISTRIES[kind].load(where)) or kind == "metric"


def test_every_kind_has_an_example() -> None:
    assert {kind for kind, _, _ in VALUES} == set(registry.REGISTRIES)


@pytest.mark.usefixtures("installed")
def test_the_command_line_lists_every_kind() -> None:
    for kind, name, where in VALUES:
        listed = CliRunner().invoke(main.app, [f"{kind}s" if kind != "strategy" else "strategies", "--json"])
        assert listed.exit_code == 0, listed.output
        assert {"name": name, "from": where}.items() <= next(
            row for row in json.loads(listed.output) if row["name"] == name
        ).items()


@pytest.mark.usefixtures("importable")
def test_a_broken_promise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "from ia3 import IA3\nclass Loud(IA3):\n    def draw(self, *a):\n"
    broken += "        return {n: 2 * x for n, x in super().draw(*a).items()}\n"
    (tmp_path / "loud_kind.py").write_text(broken)
    monkeypatch.syspath_prepend(tmp_path)
    code, said = check("adapter", "loud_kind:Loud")
    assert code == 1
    assert re.search(r"^FAIL  version 0 leaves the function as it is: .*differ from the base's by", said, re.MULTILINE)


def simulated(tmp_path: Path, base: Path, tables: dict[str, Any]) -> Any:
    """A run of two clients on the smallest base."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    small: dict[str, Any] = {
        "model": {"id": str(base)}, "data": {"train": str(rows), "max_length": 24}, "strategy": {"name": "fedit"},
        "local": {"steps": 2, "batch_size": 4}, "server": {"rounds": 2}, "clients": {"rank": 2},
    }  # fmt: skip
    for name, keys in tables.items():
        small[name] = {**small.get(name, {}), **keys}
    return fedft.simulate(run_file.from_dict(small), out=tmp_path / "run")


RUNS: dict[str, dict[str, Any]] = {
    "median": {"strategy": {"name": "median:median"}},
    "ia3": {"model": {"adapter": "ia3:IA3"}},
    "ia3 under fedopt on scaffold": {
        "model": {"adapter": "ia3:IA3"}, "strategy": {"name": "fedopt", "on": {"name": "scaffold", "on": "fedit"}},
    },
    "lora_xs": {"model": {"adapter": "lora_xs:LoRAXS"}},
    "lora_xs, zeroth order": {"model": {"adapter": "lora_xs:LoRAXS"}, "strategy": {"name": "zo_fedavg"}},
    "thumbs": {"local": {"objective": {"name": "thumbs:Thumbs", "beta": 0.2}}},
    "label smoothing in shared passes": {
        "local": {"objective": "label_smoothing:label_smoothing"}, "server": {"together": 2},
    },
    "lion": {"local": {"optimizer": "lion:lion", "learning_rate": 1e-3}},
    "clip and noise": {"local": {"transforms": [{"name": "clip_and_noise:clip_and_noise", "max_norm": 0.1}]}},
    "a gate": {"server": {"gates": [{"name": "largest_step:largest_step", "most": 1e3}]}},
    "by length": {"data": {"partition": {"name": "by_length:by_length", "text": "prompt"}, "clients": 3}},
    "a log": {"server": {"loggers": ["csv_log:csv_log"]}},
    "a metric": {"eval": {"metrics": ["distinct:distinct"]}},
    "a function as a metric": {"eval": {"metrics": ["same_length:same_length"], "best": "same_length"}},
    "an encoding": {"data": {"encode": "first_line:first_line"}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize("name", RUNS)
def test_a_run_file_that_names_it_runs(name: str, tmp_path: Path, tiny_base: Path) -> None:
    run = simulated(tmp_path, tiny_base, RUNS[name])
    assert run.summary["rounds"] == 2
    assert run.summary["refused"] == 0
    if name == "a log":
        assert len((run.folder / "log.csv").read_text().splitlines()) == 1 + 3  # three states under a heading
    if name == "a metric":
        assert 0 < run.summary["final"]["distinct"] <= 1
    if name == "a function as a metric":
        assert run.summary["best"]["value"] == max(line["same_length"] for line in run.lines)
    if name == "by length":
        assert set(run.lines[1]["participants"]) == {"length-0", "length-1", "length-2"}
    if name in ("ia3", "lora_xs"):
        assert (run.model / "values.json").exists()
        assert run.summary["bytes_up"] < 60_000


@pytest.mark.usefixtures("importable")
def test_a_planner_gives_a_poor_client_a_smaller_adapter_and_less_work(tmp_path: Path, tiny_base: Path) -> None:
    """b has 16 rows to train on, a 29: with `few` = 20 only b's adapters of q_proj have rank 1; b takes one step."""
    plan = {"name": "by_rows:by_rows", "few": 20}
    run = simulated(tmp_path, tiny_base, {"strategy": {"name": "flora"}, "clients": {"plan": plan, "rank": 3}})
    sent = {c: b["up"] for c, b in run.lines[1]["bytes"].items()}
    assert sent["b"] < sent["a"]
    plans = list((run.folder / "state").rglob("plans"))
    assert not plans or all(p.stat().st_size for p in plans)


@pytest.mark.usefixtures("importable")
def test_a_gate_that_refuses_commits_nothing(tmp_path: Path, tiny_base: Path) -> None:
    with pytest.raises(RunPaused, match=r"round 0: nothing is committed: the state would move by .*, at most 1e-06"):
        simulated(tmp_path, tiny_base, {"server": {"gates": [{"name": "largest_step:largest_step", "most": 1e-6}]}})
    assert not list((tmp_path / "run" / "state").glob("gen-00000001*"))


@pytest.mark.usefixtures("importable")
def test_a_transform_bounds_what_leaves(tmp_path: Path, tiny_base: Path) -> None:
    """Both clients' changes are clipped to 1e-3, so no weighted mean of them is longer."""
    loose, tight = tmp_path / "loose", tmp_path / "tight"
    for folder in (loose, tight):
        folder.mkdir()
    simulated(loose, tiny_base, {})
    clip = {"name": "clip_and_noise:clip_and_noise", "max_norm": 1e-3}
    simulated(tight, tiny_base, {"local": {"transforms": [clip]}})
    from fedft.server.checkpoint import Store

    for folder, most in ((tight, 2.1e-3), (loose, None)):
        state, _ = Store(folder / "run" / "state").latest(recover=False)
        moved = sum(float(x.square().sum()) for n, x in state.tensors.items() if n.endswith("lora_B")) ** 0.5
        assert moved <= most if most else moved > 0.01


@pytest.mark.usefixtures("importable")
def test_what_makes_no_sense_is_refused_before_anything_is_loaded() -> None:
    for tables, said in (
        ({"strategy": {"name": "flora"}, "model": {"adapter": "ia3:IA3"}}, "flora works on pairs of LoRA factors"),
        ({"model": {"adapter": {"name": "ia3:IA3", "x": 1}}}, "has no option 'x'"),
        ({"strategy": {"name": "flora"}, "local": {"transforms": ["clip_and_noise:clip_and_noise"]}}, "sends values"),
        ({"clients": {"plan": "nobody:nothing"}}, "cannot load nobody:nothing"),
    ):
        with pytest.raises(ConfigError, match=said):
            strategies.of(run_file.from_dict(tables))
    with pytest.raises(ConfigError, match=r"no objective 'likelyhood'; .* did you mean 'likelihood'"):
        run_file.from_dict({"local": {"objective": "likelyhood"}})


@pytest.mark.usefixtures("importable")
def test_a_strategy_named_by_module_and_factory_keeps_the_contract() -> None:
    strategy_contract(strategies.make("median:median", {}), clients=5)


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(("sent", "middle"), [((1.0, 2.0, 900.0), 2.0), ((1.0, 2.0, 4.0, 900.0), 3.0)])
def test_one_wild_update_does_not_move_the_median(sent: tuple[float, ...], middle: float) -> None:
    """Of 1, 2, 900 it is 2; of 1, 2, 4, 900 it is (2 + 4) / 2 = 3; the number of examples does not count."""
    updates = [Update({"m.lora_B": torch.tensor([x])}, num_examples=int(x)) for x in sent]
    assert strategies.make("median:median", {}).aggregate(iter(updates))["m.lora_B"].item() == middle


def test_the_examples_stay_examples() -> None:
    """Each at most 60 lines, most under 40."""
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in EXAMPLE.glob("*.py")}
    assert max(lengths.values()) <= 60, lengths
    assert sum(n < 40 for n in lengths.values()) > len(lengths) / 2, lengths
