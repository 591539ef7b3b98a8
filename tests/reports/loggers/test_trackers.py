"""Weights & Biases, MLflow and Trackio in their offline modes: each point once, the run file, and nobody is contacted.

They are in an environment of their own, `make loggers`; elsewhere their tests are skipped.
"""

import importlib
import importlib.util
import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tracked

from fedft import run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.reports.loggers import interface, lines, mlflow
from fedft.reports.observers import Audience, Observer
from fedft.suites.loggers import line, logger_contract

POINTS: dict[str, Callable[[Path], tracked.Points]] = {
    "mlflow": tracked.mlflow_points,
    "trackio": tracked.trackio_points,
    "wandb": tracked.wandb_points,
}
NAMES = sorted(POINTS)
pytestmark = pytest.mark.filterwarnings("default")  # of three other packages, on pins that no run of ours has
VARIABLES = ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_SPACE_ID")


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Whom somebody tried to reach; the user's environment says nothing."""
    for name in (*VARIABLES, "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("trackio"):
        storage = importlib.import_module("trackio.sqlite_storage")
        monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    return tracked.no_network(monkeypatch)


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A database of MLflow without a run, where MLflow is here."""
    with_mlflow = importlib.util.find_spec("mlflow") is not None
    return tracked.mlflow_template(tmp_path_factory.mktemp("mlflow")) if with_mlflow else None


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tried: list[Any], empty: Path | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a logger whose library is here."""
    pytest.importorskip(request.param, reason="in an environment of its own: make loggers")
    if request.param == "mlflow" and empty is not None:
        whole = mlflow.mlflow

        def soon(folder: Path, config: RunConfig) -> Observer:
            if not (folder / "mlflow.db").exists():
                shutil.copy(empty, folder / "mlflow.db")
            return whole(folder, config)

        monkeypatch.setattr(mlflow, "mlflow", soon)
    return str(request.param)


def told(name: str, folder: Path, versions: range, *, config: RunConfig | None = None, end: bool = True) -> None:
    """One process's part of a run."""
    folder.mkdir(exist_ok=True)
    audience = Audience()
    server = {"server": {"loggers": [name]}}
    interface.begin(audience, folder, config or run_file.from_dict(server))
    for v in versions:
        found = line(v, evaluation={c: {"loss": 1.0 + v} for c in ("north", "south/west")})
        with (folder / "metrics.jsonl").open("a") as f:
            f.write(json.dumps(found) + "\n")
        audience("line", found)
    if end:
        audience("ended", {"folder": folder, "summary": {}})


def test_it_keeps_the_contract_and_contacts_nobody(name: str, tried: list[Any]) -> None:
    logger_contract(interface.chosen([name])[name], POINTS[name])
    assert tried == []


def test_no_process_of_theirs_sends_a_packet(tried: list[Any], tmp_path: Path) -> None:
    """wandb's is no Python: seen is what leaves the network, whoever sends it."""
    for name in NAMES:
        pytest.importorskip(name, reason="in an environment of its own: make loggers")
    sent = tracked.packets(tmp_path, NAMES)
    if isinstance(sent, str):
        pytest.skip(sent)
    assert sent == []
    for name in ("wandb", "mlflow"):
        assert ("loss", 2) in POINTS[name](tmp_path / "run")


def test_the_user_s_environment_says_otherwise(
    tried: list[Any], tmp_path: Path, empty: Path | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    for name in ("mlflow", "wandb"):
        pytest.importorskip(name, reason="in an environment of its own: make loggers")
    assert empty is not None
    (tmp_path / "theirs").mkdir()
    shutil.copy(empty, tmp_path / "theirs" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'theirs' / 'mlflow.db'}")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("mlflow", "wandb"):
        told(name, tmp_path / "run", range(2))
    assert ("loss", 1) in tracked.mlflow_points(tmp_path / "theirs")
    assert not {"mlflow.db", "wandb"} & {p.name for p in (tmp_path / "run").iterdir()}
    assert "is not set" not in caplog.text


def test_all_numbers_of_a_line_are_there_and_the_run_file_s_keys(name: str, tmp_path: Path) -> None:
    config = run_file.from_dict({"server": {"loggers": [name]}, "local": {"learning_rate": 0.0123}})
    told(name, folder := tmp_path / "run", range(3), config=config)
    points = POINTS[name](folder)
    for number in ("loss", "accuracy", "bytes_up", "seconds/evaluate", "client_loss/north"):
        assert sorted(v for n, v in points if n == number) == [0, 1, 2], number
    assert sorted(v for n, v in points if n == "train_loss") == [1, 2]
    assert sum(n.startswith("client_loss/south_west-") for n, _ in points) == 3
    keys: dict[str, Any] = {}
    if name == "mlflow":
        (run,) = tracked.mlflow_runs(folder)
        keys, state = run.data.params, (run.info.status, run.info.run_name)
        assert state == ("FINISHED", "run")
    elif name == "wandb":
        for record in tracked.wandb_records(folder):
            keys |= {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in record.run.config.update}
    else:
        from trackio.sqlite_storage import SQLiteStorage

        keys = SQLiteStorage.get_run_config("fedft", tracked.trackio_name(folder)) or {}
    assert float(keys["local.learning_rate"]) == 0.0123
    assert keys["strategy.name"] == config.strategy.name


def test_a_run_of_another_folder_is_another_run(name: str, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        told(name, tmp_path / folder, range(2))
    for folder in ("a", "b"):
        assert sorted(v for n, v in POINTS[name](tmp_path / folder) if n == "loss") == [0, 1]


def test_a_run_without_a_database_makes_one(tried: list[Any], tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="in an environment of its own: make loggers")
    told("mlflow", folder := tmp_path / "run", range(1))
    assert ("loss", 0) in tracked.mlflow_points(folder)
    assert tried == []
    assert not (tmp_path / "mlruns").exists(), "nothing is written beside the run"


def test_a_resumed_run_s_lines_that_it_has_are_not_written_again(name: str, tmp_path: Path) -> None:
    """The second part finds the lines of three versions, of which the tracker has four."""
    told(name, folder := tmp_path / "run", range(4), end=False)
    kept = (folder / "metrics.jsonl").read_text().splitlines()[:3]
    (folder / "metrics.jsonl").write_text("".join(f"{text}\n" for text in kept))
    told(name, folder, range(3, 6))
    for number in ("loss", "client_loss/north"):
        assert sorted(v for n, v in POINTS[name](folder) if n == number) == list(range(6))


def test_what_it_does_and_which_variable_changes_that_is_one_line(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.WARNING, logger="fedft"):
        told(name, tmp_path / "run", range(1))
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("fedft")]
    variable = {"mlflow": "MLFLOW_TRACKING_URI", "trackio": "TRACKIO_SPACE_ID", "wandb": "WANDB_MODE"}[name]
    assert variable in said
    assert "sent to nobody" in said
    assert capsys.readouterr().out == "", "results of commands go there"


@pytest.mark.parametrize("missing", NAMES)
def test_a_library_that_is_not_there_is_one_line_with_the_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    config = run_file.from_dict({"server": {"loggers": [missing]}})
    with pytest.raises(ConfigError, match=rf"'{missing}' cannot begin: .*pip install 'fedft\[{missing}\]'") as e:
        interface.begin(Audience(), tmp_path, config)
    assert "\n" not in str(e.value)
    assert not (tmp_path / lines.IDENTITY).exists()
