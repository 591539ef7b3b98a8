"""`fedft explain` says of every key of every table its type, default and text; `--version` says which fedft this is."""

import json
from typing import get_type_hints

import pytest
from typer.testing import CliRunner

import fedft
from fedft import registry
from fedft.cli import main
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig
from fedft.errors import ConfigError


def said(*words: str) -> str:
    done = CliRunner().invoke(main.app, ["explain", *words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(("config", "more"), [(RunConfig, []), (SiteConfig, ["--site"])])
def test_every_key_of_every_table_is_explained(config: type, more: list[str]) -> None:
    tables = get_type_hints(config)
    assert json.loads(said("--json", *more)).keys() == tables.keys()
    for table, kind in tables.items():
        found = json.loads(said(table, "--json", *more))
        assert found.keys() == get_type_hints(kind).keys()
        assert all(key["what"] and key["type"] and key["default"] for key in found.values()), table
        assert all(name in said(table, *more) for name in found)


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_every_option_of_a_strategy_is_explained(name: str) -> None:
    found = json.loads(said(f"strategy.{name}", "--json"))
    assert found.keys() == registry.strategies.options(name).keys()
    assert all(option["what"] for option in found.values()), [n for n, o in found.items() if not o["what"]]


def test_one_key_with_its_whole_text() -> None:
    output = said("local.warmup")
    assert "warmup: number; default: 0.0" in output
    assert "0.03 to 0.1 is usual" in output
    assert said("[local]") == said("local")


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("locl", "did you mean 'local'"),
        ("micro_batch", "fedft explain local.micro_batch"),
        ("lr", "[local] learning_rate"),
        ("local.step", "did you mean 'steps'"),
        ("strategy.fedprx", "did you mean 'fedprox'"),
    ],
)
def test_a_word_that_is_no_key_is_answered_with_the_one_that_is(word: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead.replace("[", r"\[")):
        said(word)


def test_version() -> None:
    done = CliRunner().invoke(main.app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"fedft {fedft.__version__}\n")
