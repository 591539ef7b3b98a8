"""`fedft.simulate` from Python: what is in memory trains as it would from files, and the run is as any other."""

import json
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

import fedft
from fedft.errors import ConfigError
from fedft.simulations.python_run import Run

OWNERS = {"north": 0, "south": 1}
ROWS: dict[str, list[dict[str, Any]]] = {
    name: [{"prompt": f"{k + n} + 1 is", "response": f" {k + n + 1}"} for n in range(10)] for name, k in OWNERS.items()
}
FLAT = [{"client": name, **row} for name, rows in ROWS.items() for row in rows]
SMALL: dict[str, Any] = {
    "strategy": "fedit",
    "local": {"steps": 2, "batch_size": 2},
    "server": {"rounds": 2, "loggers": []},
    "eval": {"max_rows": 2},
}


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedft.simulate(model=tiny_base, data=ROWS, out=tmp_path_factory.mktemp("python") / "run", **SMALL)


@pytest.mark.parametrize("form", ["flat", "frame", "frames", "dataset", "file"])
def test_rows_of_every_form_train_alike(run: Run, tiny_base: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in FLAT))
    data: Any = {
        "flat": FLAT,
        "frame": pandas.DataFrame(FLAT),
        "frames": {name: pandas.DataFrame(rows) for name, rows in ROWS.items()},
        "dataset": datasets.Dataset.from_list(FLAT),
        "file": tmp_path / "rows.jsonl",
    }[form]
    again = fedft.simulate(model=str(tiny_base), data=data, out=tmp_path / "run", **SMALL)
    assert again.summary["state_digest"] == run.summary["state_digest"]


def test_a_loaded_model_trains_as_its_folder(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    again = fedft.simulate(model=loaded, data=ROWS, out=tmp_path / "run", **SMALL)
    assert again.summary["state_digest"] == run.summary["state_digest"]
    with pytest.raises(ConfigError, match="its tokenizer is not given"):
        fedft.simulate(model=loaded[0], data=ROWS, out=tmp_path / "other", **SMALL)


def test_a_run_goes_on_by_the_same_call_and_by_its_folder(run: Run, tiny_base: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": tiny_base, "data": ROWS, "out": tmp_path / "run", **SMALL}
    fedft.simulate(**{**given, "server": {"rounds": 1, "loggers": []}})
    with pytest.raises(ConfigError, match="holds a run already"):
        fedft.simulate(**given)
    with pytest.raises(ConfigError, match="not those that the run began with"):
        fedft.simulate(resume=True, **{**given, "data": {"north": ROWS["south"], "south": ROWS["north"]}})
    assert fedft.simulate(resume=True, **given).summary["state_digest"] == run.summary["state_digest"]
    longer = fedft.simulate(tmp_path / "run" / "config.toml", out=tmp_path / "run", resume=True, server={"rounds": 3})
    assert longer.summary["rounds"] == 3


def test_what_a_finished_run_gives(run: Run, tmp_path: Path) -> None:
    assert repr(run).startswith("fedit: held-out loss")
    frame = run.frame()
    assert list(frame.index) == [0, 1, 2]
    assert frame["loss"].iloc[-1] == run.summary["final"]["loss"]
    assert "<table" in run._repr_html_()
    assert set(run.clients().index) == set(OWNERS)
    assert run.evaluate()["loss"] == pytest.approx(run.summary["final"]["loss"])
    assert len(run.plot().axes[0].lines) == 1
    with pytest.raises(ConfigError, match="no metric 'los'"):
        run.plot("los")
    texts = run.generate("3 + 1 is", {"prompt": "3 + 1 is"}, new_tokens=3)
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert (run.export(tmp_path / "adapter") / "adapter_model.safetensors").exists()
    assert list(run.compare(run)["after"]) == [pytest.approx(run.summary["final"]["loss"])]
    with pytest.raises(ConfigError, match="there is no such method"):
        run.compare(against="nobody")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"data": {"north": [1]}}, "wanted a dictionary of named values"),
        ({"data": 5}, "wanted rows, a data frame"),
        ({"data": {"north": [{"client": "south", "prompt": "", "response": ""}]}}, "say client = 'south'"),
        ({"data": [{"prompt": object(), "response": ""}]}, "a record holds object"),
        ({"local": 5}, r"keys of \[local\]"),
        ({"locl": {"steps": 1}}, "did you mean 'local'"),
        ({"local": {"step": 1}}, "did you mean 'steps'"),
    ],
)
def test_mistakes_are_one_line(tables: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        fedft.simulate(out=tmp_path / "run", **tables)


def test_a_table_is_laid_over_a_run_file(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        '[strategy]\nname = "fedkseed"\nK = 64\n[server]\nrounds = 5\nloggers = []\n[local.fedit]\nsteps = 3\n'
    )
    more = {**SMALL, "local": {"batch_size": 1}, "server": {"rounds": 1}}
    done = fedft.simulate(file, model=tiny_base, data=ROWS, out=tmp_path / "run", **more)
    assert (done.summary["strategy"], done.summary["rounds"]) == ("fedit", 1)
    config = (done.folder / "config.toml").read_text()
    assert "steps = 3" in config
    assert "K = 64" not in config
