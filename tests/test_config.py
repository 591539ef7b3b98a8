"""Run files: what is accepted, and the one line that says what is not."""

from pathlib import Path

import pytest

from fedft import config
from fedft.errors import ConfigError


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[local]\nlearning_rte = 1\n", "run.toml: [local] has no 'learning_rte'; did you mean 'learning_rate'?"),
        ("[locale]\n", "run.toml: no table [locale]; did you mean 'local'?"),
        ("local = 3\n", "run.toml: local is a value, wanted a table [local]"),
        ("[local]\nsteps = 'ten'\n", "run.toml: [local] steps is 'ten', wanted int"),
        ("[local]\nsteps = true\n", "run.toml: [local] steps is True, wanted int"),
        ("[local]\nsteps = 0\n", "run.toml: expected steps >= 1, got 0"),
        ("[clients]\nrank = 0\n", "run.toml: expected rank >= 1, got 0"),
        ("[clients]\nrank = [4, 0]\n", "run.toml: expected rank >= 1, got 0"),
        ("[clients]\nrank = []\n", "run.toml: expected at least one rank, got an empty list"),
        ("[model]\ntask = 'causal'\n", "did you mean 'causal-lm'?"),
        ("[codec]\nup = 'int9'\n", "did you mean 'int8'?"),
        ("[server]\nquorum = 1.5\n", "expected 0 <= quorum <= 1, got 1.5"),
        ("[model]\ntask = 'sequence-classification'\n", "needs [model] labels, at least two"),
        ("[local\n", "run.toml: not valid TOML"),
    ],
)
def test_a_mistake_is_one_line_that_names_file_table_and_key(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as e:
        config.load(written(tmp_path, text))
    assert said in str(e.value).replace(str(tmp_path) + "/", "")
    assert "\n" not in str(e.value)


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run file"):
        config.load(tmp_path / "none.toml")


def test_an_override_wins_over_the_file_and_bare_words_are_strings(tmp_path: Path) -> None:
    path = written(tmp_path, "[local]\nsteps = 3\n[strategy]\nname = 'flora'\n")
    c = config.load(path, ["local.steps=7", "strategy.name=fedit", "local.learning_rate=1"])
    assert (c.local.steps, c.strategy.name, c.local.learning_rate) == (7, "fedit", 1.0)


@pytest.mark.parametrize("bad", ["steps=3", "local.steps", "=3", "local.steps.deep=1"])
def test_an_override_that_is_none_is_refused(tmp_path: Path, bad: str) -> None:
    path = written(tmp_path, "[local]\nsteps = 3\n")
    with pytest.raises(ConfigError):
        config.load(path, [bad])


def test_a_table_named_for_a_strategy_holds_when_that_strategy_runs(tmp_path: Path) -> None:
    text = (
        "[local]\nsteps = 3\n[local.fedkseed]\nsteps = 200\n[strategy]\nname = 'fedit'\n[strategy.fedkseed]\nK = 64\n"
    )
    path = written(tmp_path, text)
    assert config.load(path).local.steps == 3
    assert config.load(path).strategy.options == {}
    seeds = config.load(path, ["strategy.name=fedkseed"])
    assert (seeds.local.steps, seeds.strategy.options) == (200, {"K": 64})


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    import tomli_w

    c = config.from_dict(
        {"strategy": {"name": "fedkseed", "K": 8}, "clients": {"rank": [1, 2]}, "data": {"clients": 3}}
    )
    assert config.load(written(tmp_path, tomli_w.dumps(c.to_dict()))) == c


def test_relative_data_paths_mean_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    c = config.load(written(tmp_path, "[data]\ntrain = 'rows.jsonl'\n"))
    assert Path(c.data.train) == tmp_path / "rows.jsonl"


def test_the_command_line_wins_over_a_strategys_own_table(tmp_path: Path) -> None:
    path = written(tmp_path, "[clients]\nrank = 4\n[clients.fedit]\nrank = 8\n[strategy]\nname = 'fedit'\n")
    assert config.load(path).clients.rank == 8
    assert config.load(path, ["clients.rank=[2, 3]"]).clients.rank == [2, 3]


def test_paths_take_variables_and_say_which_one_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_DATA", str(tmp_path))
    c = config.load(written(tmp_path, "[data]\ntrain = '${MY_DATA}/rows.jsonl'\n"))
    assert c.data.train == str(tmp_path / "rows.jsonl")
    monkeypatch.delenv("MY_DATA")
    with pytest.raises(ConfigError, match="the variable MY_DATA is not set"):
        config.load(tmp_path / "run.toml")
