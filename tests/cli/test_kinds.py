"""`fedft codecs`, `fedft adapters`... list what a run file can name; `fedft check KIND NAME` says whether it holds."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedft import registry
from fedft.cli import kinds, main
from fedft.errors import ConfigError


def test_every_kind_has_a_command() -> None:
    assert {*kinds.KINDS.values(), "strategy"} == set(registry.REGISTRIES)


@pytest.mark.parametrize("command", kinds.KINDS)
def test_a_list_says_of_each_what_it_is_and_where_it_is_from(command: str) -> None:
    known = registry.REGISTRIES[kinds.KINDS[command]]
    done = CliRunner().invoke(main.app, [command, "--json"])
    assert done.exit_code == 0, done.output
    rows = {row["name"]: row for row in json.loads(done.output)}
    parameterised = {"fixed", "compeft"} if command == "codecs" else set()  # listed by an example
    assert set(known.built_in) - parameterised <= set(rows)
    for name in set(known.built_in) - parameterised:
        assert rows[name]["what"]
        assert rows[name]["from"] == known.built_in[name]
    plain = CliRunner().invoke(main.app, [command])
    assert all(name in plain.output for name in rows)
    assert rows or known.group in plain.output


def test_what_cannot_be_imported_is_listed_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "broken_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[fedft.optimizers]\nbroken = no_such_module_here:x\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = CliRunner().invoke(main.app, ["optimizers", "--json"])
    rows = {row["name"]: row["what"] for row in json.loads(done.output)}
    assert "cannot load no_such_module_here:x" in rows["broken"]
    assert "AdamW" in rows["adamw"]


def check(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main.app, ["check", *words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_options_reach_the_factory() -> None:
    code, said = check("partitioner", "dirichlet", "--set", "alpha=100.0")
    assert code == 0
    assert said.count("ok") == len(said.splitlines())
    with pytest.raises(ConfigError, match="alpha is 'much', wanted float"):
        check("partitioner", "dirichlet", "--set", "alpha=much")


def test_a_broken_promise_is_exit_code_one_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one_client.py").write_text(
        "def one():\n    return lambda rows, field, clients, seed: {'all': [*range(len(rows))]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    code, said = check("partitioner", "one_client:one")
    assert code == 1
    assert "FAIL  as many clients as asked for, each with a row: AssertionError: 1 clients, wanted 3" in said
    code, said = check("partitioner", "one_client:one", "--json")
    assert code == 1
    assert set(json.loads(said)) == {"partitioner", "failed"}
    sys.modules.pop("one_client", None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("partitionr", "iid"), "kind is 'partitionr', wanted one of .*; did you mean 'partitioner'"),
        (("partitioner", "idd"), "no partitioner 'idd'; .*did you mean 'iid'"),
        (("optimizer", "nowhere.at:all"), "cannot load nowhere.at:all"),
        (("optimizer", "adamw", "--set", "lr=1"), "--set lr: optimizer adamw takes no options"),
        (("metric", "rouge_l", "--set", "x=1"), "--set x: metric rouge_l takes no options"),
        (("logger", "tensorboard", "--set", "x=1"), "--set x: logger tensorboard takes no options"),
        (("codec", "topk:0.1", "--set", "share=1"), "codec topk:0.1 takes no options, what follows a colon"),
        (("objective", "likelihood", "--set", "x=1"), "likelihood has no option 'x'"),
        (("adapter", "lora", "--set", "x=1"), "lora has no option 'x'"),
        (("gate", "largest_norm", "--set", "mst=1"), "no option 'mst'.*did you mean 'most'"),
        (("partitioner", "iid", "--set", "x=1"), "iid has no option 'x'"),
        (("strategy", "fedit", "--set", "x=1"), "fedit has no option 'x'"),
        (("partitioner", "iid", "--clients", "5"), "--clients 5: only strategies"),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        check(*words)
    assert e.value.exit_code == 2
    assert "\n" not in str(e.value)


def test_a_kind_without_a_suite_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.SUITES, "gate")
    with pytest.raises(ConfigError, match="no contract suite of kind gate yet"):
        check("gate", "largest_norm", "--set", "most=1.0")
