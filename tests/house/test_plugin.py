"""A strategy from outside the package (`plugin_example/`) keeps the same contract, under both of its names."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fedft import registry, strategies
from fedft.cli import main
from fedft.testing import strategy_contract
from fedft.update import Update

EXAMPLE = Path(__file__).parents[1] / "plugin_example"


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example's folder on the path, as after `pip install -e`, but for its metadata."""
    monkeypatch.syspath_prepend(EXAMPLE)
    yield
    sys.modules.pop("median", None)


@pytest.fixture
def installed(importable: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata that pip writes for the example's pyproject.toml."""
    info = tmp_path / "fedft_median-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedft-median\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[fedft.strategies]\nmedian = median:median\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("importable")
def test_a_strategy_named_by_module_and_factory_keeps_the_contract() -> None:
    strategy_contract(strategies.make("median:median", {}))


@pytest.mark.usefixtures("installed")
def test_a_strategy_of_an_installed_package_keeps_the_contract() -> None:
    assert registry.installed()["median"] == "median:median"
    strategy_contract(strategies.load("median")())


def test_the_metadata_used_here_is_what_the_example_declares() -> None:
    assert (
        '[project.entry-points."fedft.strategies"]\nmedian = "median:median"'
        in (EXAMPLE / "pyproject.toml").read_text()
    )


def test_without_the_package_its_name_is_unknown() -> None:
    assert "median" not in registry.installed()


@pytest.mark.usefixtures("installed")
def test_the_command_line_lists_and_checks_it() -> None:
    listed = CliRunner().invoke(main.app, ["strategies", "--json"])
    assert listed.exit_code == 0
    assert '"median:median"' in listed.output
    checked = CliRunner().invoke(main.app, ["check-strategy", "median", "--json"])
    assert checked.exit_code == 0
    assert '"failed": {}' in checked.output


@pytest.mark.usefixtures("importable")
@pytest.mark.parametrize(("sent", "middle"), [((1.0, 2.0, 900.0), 2.0), ((1.0, 2.0, 4.0, 900.0), 3.0)])
def test_one_wild_update_does_not_move_the_median(sent: tuple[float, ...], middle: float) -> None:
    """Of 1, 2, 900 it is 2; of 1, 2, 4, 900 it is (2 + 4) / 2 = 3; the number of examples does not count."""
    updates = [Update({"m.lora_B": torch.tensor([x])}, num_examples=int(x)) for x in sent]
    assert strategies.make("median:median", {}).aggregate(iter(updates))["m.lora_B"].item() == middle


def test_the_example_stays_an_example() -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in EXAMPLE.glob("*.py")}
    assert lines["median.py"] <= 40
    assert max(lines.values()) <= 60, lines
