"""A run file or run folder that somebody sends is data: what it names is not imported, let alone called, unasked."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedft
from fedft import allowed_code, run_file, strategies
from fedft.errors import ConfigError
from fedft.simulations import finished_run, race
from fedft.simulations.contenders import contender

MODULE = """
from collections.abc import Iterator
from pathlib import Path
Path(__file__).with_name("ran").touch()
from fedft import Recipe
from fedft.strategies.fedit import fedit
def mine() -> Recipe: return fedit()
def twenty(): return 20
"""
TABLES: dict[str, dict[str, Any]] = {
    "strategy": {"strategy": {"name": "beside:mine"}},
    "a strategy below another": {"strategy": {"name": "fedprox", "on": {"name": "fedopt", "on": "beside:mine"}}},
    "adapter": {"strategy": {"name": "fedit"}, "model": {"adapter": "beside:mine"}},
    "optimizer": {"strategy": {"name": "fedit"}, "local": {"optimizer": "beside:mine"}},
    "objective": {"strategy": {"name": "fedit"}, "local": {"objective": "beside:mine"}},
    "transform": {"strategy": {"name": "fedit"}, "local": {"transforms": [{"name": "beside:mine", "c": 1}]}},
    "partitioner": {"strategy": {"name": "fedit"}, "data": {"partition": "beside:mine"}},
    "planner": {"strategy": {"name": "fedit"}, "clients": {"plan": "beside:mine"}},
    "gate": {"strategy": {"name": "fedit"}, "server": {"gates": ["beside:mine"]}},
    "metric": {"strategy": {"name": "fedit"}, "eval": {"metrics": ["beside:mine"]}},
    "logger": {"strategy": {"name": "fedit"}, "server": {"loggers": ["beside:mine"]}},
    "codec": {"strategy": {"name": "fedit"}, "codec": {"up": "beside:mine"}},
}


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module of that name, as it may lie beside a run file; `ran` tells of its import."""
    (tmp_path / "beside.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv(allowed_code.VARIABLE, raising=False)
    yield tmp_path
    sys.modules.pop("beside", None)


@pytest.mark.parametrize("table", TABLES)
def test_no_table_of_a_run_file_imports_what_nobody_allowed(beside: Path, tiny_base: Path, table: str) -> None:
    tables = TABLES[table]
    tables = {**tables, "model": {"id": str(tiny_base), **tables.get("model", {})}}
    with pytest.raises(ConfigError, match="beside") as e:
        fedft.simulate(run_file.from_dict(tables), out=beside / "run")
    assert "\n" not in str(e.value)
    assert not (beside / "ran").exists()


def test_what_is_allowed_is_imported_and_called_if_it_says_what_it_returns(beside: Path) -> None:
    allowed_code.allow(["beside:mine"])
    assert strategies.make("beside:mine", {}).name == "fedit"
    with pytest.raises(ConfigError, match="--allow beside:twenty"):
        strategies.make("beside:twenty", {})
    allowed_code.allow(["--set strategy.name=beside:twenty"])
    with pytest.raises(ConfigError, match="beside:twenty is not called: it says that it returns nothing"):
        strategies.make("beside:twenty", {})


def test_a_run_folder_is_data_for_every_command(beside: Path, tiny_base: Path) -> None:
    """A finished run whose config.toml somebody has edited."""
    rows = beside / "rows.jsonl"
    made = [{"client": "ab"[i % 2], "prompt": "p", "response": "one two"} for i in range(12)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    tables = {"model": {"id": str(tiny_base)}, "data": {"train": str(rows)}, "strategy": {"name": "fedit"}}
    tables |= {"local": {"steps": 1}, "server": {"rounds": 1, "loggers": []}, "eval": {"max_rows": 1}}
    fedft.simulate(run_file.from_dict(tables), out=beside / "run")
    config = beside / "run" / "config.toml"
    config.write_text(config.read_text().replace('name = "fedit"', 'name = "beside:mine"'))
    shutil.copytree(beside / "run", beside / "again")
    for act in (
        lambda: finished_run.evaluate_run(beside / "run"),
        lambda: finished_run.export_run(beside / "run", beside / "to"),
        lambda: fedft.simulate(beside / "again" / "config.toml", out=beside / "again", resume=True),
        lambda: race.race(config, [contender("a: local.steps=1")], 1, beside / "race"),
    ):
        with pytest.raises(ConfigError, match=r"beside:mine.* is code outside fedft"):
            act()
    assert not (beside / "ran").exists()
    done = fedft.simulate(config, out=beside / "allowed", allow=["beside:mine"])
    assert done.summary["rounds"] == 1
