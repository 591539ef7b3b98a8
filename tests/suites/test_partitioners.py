"""Built-in partitioners keep their contract; one that breaks a promise is told which."""

from collections.abc import Callable

import pytest

from fedft import registry
from fedft.data.partition import Cut, partition
from fedft.errors import ConfigError, DataError
from fedft.suites.partitioners import PROMISES, partitioner_contract


@pytest.mark.parametrize("options", [{}, {"alpha": 0.1}, {"alpha": 100.0}], ids=str)
@pytest.mark.parametrize("name", registry.partitioners.built_in)
def test_every_built_in_one_keeps_its_promises(name: str, options: dict[str, float]) -> None:
    if options and name != "dirichlet":
        with pytest.raises(ConfigError, match=f"{name} has no option 'alpha'"):
            registry.partitioners.make(name, options)
        return
    assert not any(partitioner_contract(registry.partitioners.make(name, options)).values())


def _changed(change: Callable[[dict[str, list[int]], int], dict[str, list[int]]]) -> Cut:
    calls = []

    def cut(rows, field, clients, seed):
        calls.append(seed)
        return change({f"c{k}": list(range(k, len(rows), clients)) for k in range(clients)}, len(calls))

    return cut


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        (lambda parts, n: {**parts, "c0": parts["c0"][1:]}, "every row has one client"),
        (lambda parts, n: {**parts, "c0": [1, *parts["c0"]]}, "every row has one client"),
        (lambda parts, n: {**parts, "c9": []}, "as many clients as asked for, each with a row"),
        (
            lambda parts, n: {"c0": sorted(n for part in parts.values() for n in part)},
            "as many clients as asked for, each with a row",
        ),
        (lambda parts, n: {c: part[::-1] for c, part in parts.items()}, "the same seed gives the same cut"),
        (lambda parts, n: {f"{c}-{n}": part for c, part in parts.items()}, "the same seed gives the same cut"),
    ],
)
def test_a_broken_promise_is_named(change, promise: str) -> None:
    assert not any(partitioner_contract(_changed(lambda parts, n: parts)).values())
    failed = [said for said, why in partitioner_contract(_changed(change), stop=False).items() if why]
    assert any(said.startswith(promise) for said in failed), failed
    with pytest.raises(AssertionError):
        partitioner_contract(_changed(change))


def test_every_promise_can_be_broken() -> None:
    def nothing(rows, field, clients, seed):
        raise DataError("no")

    assert all(partitioner_contract(nothing, stop=False).values())
    assert partitioner_contract(nothing, stop=False).keys() == PROMISES.keys()


def test_a_partitioner_with_options_of_its_own_is_chosen_by_a_table() -> None:
    rows = [{"who": "abc"[n % 3]} for n in range(60)]
    said = {"name": "dirichlet", "alpha": 50.0}
    chosen = partition(rows, how=said, field="who", clients=3, alpha=0.1, seed=1)
    assert chosen == partition(rows, how="dirichlet", field="who", clients=3, alpha=50.0, seed=1)
    assert chosen != partition(rows, how="dirichlet", field="who", clients=3, alpha=0.1, seed=1)


def test_one_of_another_package_that_fails_is_one_line(tmp_path, monkeypatch, allow) -> None:
    allow("halves:halves")
    (tmp_path / "halves.py").write_text(
        "def halves():\n"
        "    def cut(rows, field, clients, seed):\n"
        "        return {'a': [*range(len(rows) // clients)]}\n"
        "    return cut\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="partition 'halves:halves' with clients = None: unsupported operand"):
        partition([{}, {}], how="halves:halves", field=None, clients=None, alpha=0.5, seed=0)
    with pytest.raises(DataError, match="expected 1 to 2 clients, got 3"):
        partition([{}, {}], how="halves:halves", field=None, clients=3, alpha=0.5, seed=0)
