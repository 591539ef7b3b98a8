"""Each client alone and all rows in one place: trained with the engine, on the rows that they say."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fedft import run_file
from fedft.cli import main
from fedft.config import RunConfig
from fedft.privacy.tables import Robust
from fedft.simulations import alone_and_central
from fedft.simulations import run as runs

SETS = ["local.steps=3", "local.batch_size=2", "server.rounds=2", "eval.max_rows=4", "clients.rank=[2, 4]"]


def config(base: Path, *more: str) -> RunConfig:
    return run_file.load(runs.QUICKSTART, [f"model.id='{base}'", "data.clients=2", *SETS, *more])


def test_one_client_alone_is_the_run_of_that_client(tiny_base: Path, tmp_path: Path) -> None:
    """With one client there is nothing to average: alone, on its own rows and together are one number."""
    only = config(tiny_base, "data.clients=1", "server.loggers=[]")
    loss = runs.simulate(only, out=tmp_path / "run").summary["final"]["loss"]
    assert alone_and_central.alone(only) == {"alone": pytest.approx(loss), "own": pytest.approx(loss)}


def test_a_robust_sum_has_no_part_in_it(tiny_base: Path) -> None:
    """multi_krum needs three updates; one client alone has one."""
    two = config(tiny_base, "server.rounds=1")
    wanted = alone_and_central.alone(two)
    assert alone_and_central.alone(replace(two, robust=Robust("multi_krum"))) == wanted


def test_alone_everybody_has_only_its_own_rows_and_its_rank(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    measure = alone_and_central._losses

    def look(place, owner):  # type: ignore[no-untyped-def]
        seen.append((owner.name, len(owner.train_rows), place.config.clients.rank, place.config.local.batch_size))
        return measure(place, owner)

    monkeypatch.setattr(alone_and_central, "_losses", look)
    of_two = config(tiny_base)
    found = alone_and_central.alone(of_two) | alone_and_central.central(of_two)
    (a, rows_a, rank_a, batch), (b, rows_b, rank_b, _), whole = seen
    assert ((a, rank_a), (b, rank_b), batch) == (("asyncio", 2), ("email", 4), 2)
    assert whole == ("central", rows_a + rows_b, 4, 4)
    assert found["alone"] != found["own"]


@pytest.mark.parametrize(("more", "compared"), [((), True), (("--json",), False), (("--set", "server.seed=1"), False)])
def test_the_quickstart_as_it_is_ends_with_the_comparison(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...], compared: bool,
) -> None:  # fmt: skip
    quick = tmp_path / "quickstart.toml"
    quick.write_text(
        f"model = {{id = '{tiny_base}'}}\ndata = {{clients = 1}}\nserver = {{rounds = 1, loggers = []}}\n"
        "local = {steps = 1}\neval = {max_rows = 1}\n"
    )
    monkeypatch.setattr(main, "_quickstart", lambda: quick)
    monkeypatch.setattr(alone_and_central, "losses", lambda config: {"alone": 4.1, "own": 3.2, "central": 3.3})
    monkeypatch.setattr(sys, "argv", ["fedft", "simulate", "--out", str(tmp_path / "run"), *more])
    with pytest.raises(SystemExit) as e:
        main.main()
    assert not e.value.code
    together = json.loads((tmp_path / "run" / "summary.json").read_text())["final"]["loss"]
    line = f"loss   alone 4.100 (3.200 on own rows), together {together:.3f}, all in one place 3.300"
    assert (capsys.readouterr().out.splitlines()[-1] == line) == compared
    assert len(line) <= 80
