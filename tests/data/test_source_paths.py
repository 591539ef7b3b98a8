"""Paths in a run file: where they begin, and that a list of them is each of them."""

import tomllib

import pytest

from fedft import run_file
from fedft.errors import ConfigError
from fedft.simulations import run as runs
from fedft.simulations import virtual_clients


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("own/a.csv", "own/b c.csv", "elsewhere/d.csv", "home/e.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("client,prompt,response\nx,a,b\nx,c,d\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VISITS", str(tmp_path / "own"))
    return tmp_path


CASES = {
    "a.csv": "own/a.csv", "b c.csv": "own/b c.csv", "*.csv": "own/*.csv", "d.csv": "elsewhere/d.csv",
    "~/e.csv": "home/e.csv", "$VISITS/a.csv": "own/a.csv", "${VISITS}": "own", "owner/name:de:train": None,
    "stdlib-docstrings": None, "none.csv": None, "C:\\data\\a.csv": None,
}  # fmt: skip


@pytest.mark.parametrize("said", CASES)
def test_a_path_begins_at_the_run_file_else_in_the_working_folder(place, said):
    (place / "own/run.toml").write_text(f"[data]\ntrain = '{said}'\ntest = ['d.csv', '{said}']\n")
    found = run_file.load(place / "own/run.toml").data
    wanted = said if CASES[said] is None else str(place / CASES[said])
    assert found.train == wanted
    assert found.test == [str(place / "elsewhere/d.csv"), wanted]


def test_a_variable_that_is_not_set_is_named_inside_a_list_too(place):
    (place / "own/run.toml").write_text("[data]\ntrain = ['a.csv', '$NOWHERE/a.csv']\n")
    with pytest.raises(
        ConfigError, match=r"run\.toml: \[data\] train = '\$NOWHERE/a\.csv': the variable NOWHERE is not"
    ):
        run_file.load(place / "own/run.toml")
    with pytest.raises(ConfigError, match=r"\[data\] train is 7, wanted str"):
        run_file.from_dict({"data": {"train": ["a.csv", 7]}})


def test_a_run_on_a_list_of_files_and_a_list_of_test_files(place, tiny_base):
    (place / "own/run.toml").write_text(
        f"[model]\nid = '{tiny_base}'\n[data]\ntrain = ['a.csv', 'b c.csv']\ntest = ['d.csv', '~/e.csv']\n"
        "[strategy]\nname = 'fedit'\n[local]\nsteps = 1\nbatch_size = 2\n[server]\nrounds = 1\n"
    )
    done = runs.simulate(place / "own/run.toml", out=place / "run")
    assert (done.summary["header"]["train_rows"], done.summary["header"]["held_out_rows"]) == (4, 4)
    stored = tomllib.loads((place / "run/config.toml").read_text())["data"]
    assert stored["train"] == [str(place / "own/a.csv"), str(place / "own/b c.csv")]


def test_a_test_file_that_is_trained_on_is_said(place, caplog):
    for test, lines in (("d.csv", 0), ("a.csv", 1), (["d.csv", "a.csv"], 1)):
        caplog.clear()
        (place / "own/run.toml").write_text(f"[data]\ntrain = ['a.csv', 'b c.csv']\ntest = {test!r}\n")
        virtual_clients.whole_by_client(run_file.load(place / "own/run.toml"))
        said = f"[data] train and test both name {place / 'own/a.csv'}: what is measured on it has been learned"
        assert caplog.messages == [said] * lines
