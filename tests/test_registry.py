"""Whatever kind of value a run file names is found by the same rules, and what is wrong with it is one short line."""

import ast
import sys
from importlib import import_module
from pathlib import Path

import pytest

from fedft import check, registry
from fedft.errors import ConfigError
from fedft.registry import REGISTRIES, SUITES, Registry

KNOWN = [(kind, name) for kind, r in REGISTRIES.items() for name in r.built_in]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with optimizers `mine`, `sgd` (a name that is taken) and `broken`, as pip leaves it."""
    info = tmp_path / "some_optimizers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-optimizers\nVersion: 1.0\n")
    points = "mine = some_optimizers:mine\nsgd = some_optimizers:mine\nbroken = broken_optimizers:x\n"
    (info / "entry_points.txt").write_text(f"[fedft.optimizers]\n{points}")
    (tmp_path / "some_optimizers.py").write_text("def mine(parameters, lr, local): ...\n")
    (tmp_path / "broken_optimizers.py").write_text("raise RuntimeError('two\\nlines ' + 'x' * 10_000)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_optimizers", raising=False)
    return tmp_path


@pytest.mark.parametrize(("kind", "name"), KNOWN, ids=[f"{kind}-{name}" for kind, name in KNOWN])
def test_everything_built_in_is_where_its_registry_says(kind: str, name: str) -> None:
    assert REGISTRIES[kind].load(name) is not None


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_kind_has_a_group_of_entry_points_and_a_suite(kind: str) -> None:
    assert REGISTRIES[kind].kind == kind
    assert sum(r.group == REGISTRIES[kind].group for r in REGISTRIES.values()) == 1
    module, _, suite = SUITES[kind].partition(":")
    assert callable(getattr(import_module(module), suite))


def test_looking_names_up_imports_nothing(installed: Path) -> None:
    names = registry.optimizers.names()
    assert names["mine"] == "some_optimizers:mine"
    assert registry.optimizers.listed("mine", ["mine"])
    assert "some_optimizers" not in sys.modules


def test_no_package_takes_the_name_of_what_is_built_in(installed: Path) -> None:
    assert registry.optimizers.names()["sgd"] == "fedft.training.optimizers:sgd"


def test_a_module_that_fails_is_one_line_of_bounded_length(installed: Path) -> None:
    with pytest.raises(ConfigError, match="optimizer 'broken': cannot load broken_optimizers:x: RuntimeError") as e:
        registry.optimizers.load("broken")
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 1000


def test_an_unknown_name_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"no partitioner 'dirichelt'; there are .*; did you mean 'dirichlet'"):
        registry.partitioners.load("dirichelt")


@pytest.mark.parametrize("r", [Registry("thing", "fedft.things", {}), registry.codecs])
def test_a_value_is_quoted_up_to_eighty_characters(r: Registry) -> None:
    with pytest.raises(ConfigError) as e:
        r.load("x" * 10_000)
    assert len(str(e.value)) < 400


def test_an_option_that_is_a_whole_table_is_cut_short() -> None:
    for option, value in (("K", list(range(10_000))), ("table", {"a" * 5_000: 1}), ("y" * 10_000, 1)):
        with pytest.raises(ConfigError) as e:
            registry.strategies.make("fedkseed", {option: value})
        assert len(str(e.value)) < 400, option
    assert check.quoted([1, 2]) == "[1, 2]"


@pytest.mark.parametrize(
    ("choice", "also", "is_listed"),
    [
        ("sgd", [], True),
        ({"name": "sgd"}, [], True),
        ("mine", [], False),
        ("mine", ["mine"], True),
        ("some_optimizers:mine", ["some_optimizers:mine"], False),
        ("gone", ["gone"], False),
        ({"nme": "sgd"}, [], False),
        ({"name": ["sgd"]}, [], False),
    ],
)
def test_what_is_listed_is_built_in_or_installed_and_allowed(
    installed: Path, choice: registry.Choice, also: list[str], is_listed: bool
) -> None:
    assert registry.optimizers.listed(choice, also) is is_listed


def test_the_tower_of_a_strategy_is_all_that_it_names() -> None:
    options = {"mu": 0.1, "on": {"name": "fedopt", "tau": 1e-3, "on": "ffa_lora"}}
    assert [name for name, _ in registry.tower("fedprox", options)] == ["fedprox", "fedopt", "ffa_lora"]
    assert [name for name, _ in registry.tower("fedprox", {"on": 7})] == ["fedprox", ""]


def test_the_registries_are_known_without_torch() -> None:
    """Run files are checked before anything heavy is loaded."""
    tree = ast.parse(Path(registry.__file__).read_text(encoding="utf-8"))
    imported = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)}
    assert not any("torch" in line or "numpy" in line for line in imported)
