"""What a server's memory is foreseen from: each part moves with what it is of, and nothing else."""

from typing import Any

import pytest

from fedft import run_file, strategies
from fedft.contract import Layout
from fedft.server.memory_need import ServerMemory, foreseen

LAYOUT = Layout(
    {f"layers.{n}.q": (512, 512) for n in range(4)}, parameters={f"layers.{n}.q.weight": (512, 512) for n in range(4)}
)
PAIR = 4 * 4 * 1024  # bytes of one rank in all modules


def need(
    strategy: str = "fedit", clients: int = 8, base: float = 0.0, asked: int | None = None, **tables: dict[str, Any]
) -> ServerMemory:
    said: dict[str, Any] = {"strategy": {"name": strategy}, "data": {"max_length": 64}, "server": {"rounds": 3}}
    said |= {"clients": {"rank": 16}} if strategy != "fedavg" else {}
    said["clients"] = {**said.get("clients", {}), **({} if asked is None else {"per_round": asked})}
    for name, table in tables.items():
        said[name] = {**said.get(name, {}), **table}
    config = run_file.from_dict(said)
    recipe = strategies.of(config)
    return foreseen(config, recipe, recipe.space.layout(LAYOUT), clients, base)


QUIET = {"exactness": False}


def test_the_parts_are_the_peak_and_the_base_is_one_of_them() -> None:
    found = need(base=5e8)
    assert found.peak == found.base + found.beside + found.process
    assert (found.base, found.beside) == (5e8, need().beside)
    assert found.to_dict()["peak"] == found.peak


def test_a_mean_waits_for_all_updates_and_takes_their_double_once() -> None:
    one = 16 * PAIR
    found = need(eval=QUIET)
    assert found.where in ("sum", "answers")
    assert found.beside == pytest.approx(8 * one + 3 * one, rel=0.2)
    assert need(clients=32, eval=QUIET).beside - found.beside == pytest.approx(24 * one, rel=0.05)


def test_who_is_not_asked_takes_nothing() -> None:
    assert need(clients=80, eval=QUIET, asked=8).beside == need(eval=QUIET).beside


def test_what_is_measured_takes_every_client_s_factors() -> None:
    found = need()
    assert found.where == "error"
    assert found.error > 8 * 16 * PAIR
    assert need(eval=QUIET).error == 0
    assert need("fedavg").error == 0, "no factors, nothing to measure"


def test_a_sum_of_all_rounds_grows_up_to_the_weights() -> None:
    few, many = (need("flora", eval=QUIET, server={"rounds": r}) for r in (1, 3))
    assert few.beside < many.beside <= need("flora", eval=QUIET, server={"rounds": 300}).beside
    dense = 4 * 4 * 512 * 512
    assert need("flora", eval=QUIET, server={"rounds": 300}).beside < 6 * dense


@pytest.mark.parametrize("rule", ["multi_krum", "norm_clip"])
def test_a_rule_keeps_all_updates_until_the_stack_of_them_stands(rule: str) -> None:
    assert need("flexlora", eval=QUIET, robust={"rule": rule}).beside > need("flexlora", eval=QUIET).beside
    assert need("flexlora", eval=QUIET, robust={"rule": rule}).beside > 2 * 8 * 16 * PAIR


def test_updates_that_are_large_lie_in_their_files() -> None:
    """Of 64 MiB each: a few tensors of them are in memory, however many there are."""
    layout = Layout(parameters={f"layers.{n}.w": (1024, 1024) for n in range(16)})
    config = run_file.from_dict({"strategy": {"name": "fedavg"}, "data": {"max_length": 64}, "eval": QUIET})
    few, many = (foreseen(config, strategies.of(config), layout, n).beside for n in (4, 40))
    assert few == many < 5.1 * 2**26
