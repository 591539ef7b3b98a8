"""Clients whose bases are of unlike precision in one run: taken, told apart in the record, and its state is one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedft
from fedft import allowed_code, run_file
from fedft.config import Model
from fedft.contract import Roster, Work
from fedft.errors import PlanRefused
from fedft.models import resident
from fedft.reports import columns
from fedft.server import by_bits
from fedft.simulations import run, workplace
from fedft.update import BITS


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path):
    rows = [{"client": "xyz"[i % 3], "prompt": f"a{i}", "response": f"b{i}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tables = {"model": {"id": str(tiny_base)}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 16}}
    tables |= {"strategy": {"name": "flora"}, "local": {"steps": 1}, "server": {"rounds": 2, "loggers": []}}
    return run_file.from_dict(tables | {"clients": {"rank": 2}})


def halved(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These clients of simulations have the base in bfloat16, as sites whose files say so."""
    made = workplace.workplace

    def place(config, *args, **how):
        found = made(config, *args, **how)
        half = replace(config, model=replace(config.model, dtype="bfloat16"))
        here = resident.load(half, found.recipe)
        assert here.base.digest == found.base.digest
        for name in names:
            client = found.clients[name]
            client.config, client.base, client.handle = half, here.base, here.handle
        return found

    monkeypatch.setattr(run, "workplace", place)


def test_a_federation_of_unlike_bases_learns_and_says_the_loss_of_each(config, tmp_path, monkeypatch) -> None:
    halved(monkeypatch, "y")
    fedft.simulate(config, out=tmp_path / "run")
    first, *rounds = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert first[BITS].keys() == {"16", "32"}
    assert first[BITS]["32"]["evaluated"] == 2
    for line in rounds:
        assert line["participants"] == ["x", "y", "z"]
        assert [line[BITS][bits]["clients"] for bits in ("16", "32")] == [1, 2]
        assert line[BITS]["16"]["loss"] == line["evaluation"]["y"]["loss"]
        means = [line["evaluation"][c]["loss"] for c in "xz"]
        assert line[BITS]["32"]["loss"] == pytest.approx(sum(means) / 2)
        whole = sum(t["train_loss"] * sum(line["weights"][c] for c in of) for t, of in
                    ((line[BITS]["16"], "y"), (line[BITS]["32"], "xz")))  # fmt: skip
        assert line["train_loss"] == pytest.approx(whole / sum(line["weights"].values()))
        assert BITS not in columns.measured(line)
    assert json.loads((tmp_path / "run/model/base.json").read_text())["clients"] == {"16": 1, "32": 2}
    assert rounds[-1]["loss"] < first["loss"]


def test_where_all_have_the_run_s_precision_nothing_is_said(config, tmp_path) -> None:
    fedft.simulate(replace(config, model=replace(config.model, dtype="bfloat16")), out=tmp_path / "run")
    assert BITS not in (tmp_path / "run/metrics.jsonl").read_text()


def test_what_no_base_has_counts_as_other() -> None:
    facts = [(1, {"loss": 1.0, BITS: x}) for x in (4.0, 1e300, -3.0)]
    assert by_bits.trained(facts, Model(dtype="float32"))[BITS].keys() == {"other", "4"}


def by_name() -> Any:
    """A planner: y is asked for a base of 8 bits and z for one of 4, in the second round z for its own again."""

    def plan(state: Any, roster: Roster) -> dict[str, Work]:
        return {"y": Work(bits=8), **({"z": Work(bits=4)} if roster.round == 0 else {})}

    return plan


def test_a_plan_may_ask_for_another_precision_and_each_loss_is_told(config, tmp_path) -> None:
    """The clients train one set of adapters; who was asked for 8 or 4 bits says so, and the losses differ by it."""
    allowed_code.allow([name := "tests.simulations.test_unlike_bases:by_name"])
    planned = replace(config, clients=replace(config.clients, plan=name))
    done = fedft.simulate(planned, out=tmp_path / "run")
    assert [{b: x["clients"] for b, x in line[BITS].items()} for line in done.lines[1:]] == [
        {"4": 1, "8": 1, "32": 1}, {"8": 1, "32": 2},
    ]  # fmt: skip
    assert done.lines[1]["plans"]["z"]["bits"] == 4
    whole = fedft.simulate(config, out=tmp_path / "whole")
    assert done.lines[1]["train_loss"] != whole.lines[1]["train_loss"]
    assert done.lines[1]["train_loss"] == pytest.approx(whole.lines[1]["train_loss"], rel=0.05)
    assert done.summary["refused"] == 0


def test_who_is_asked_for_another_precision_trains_on_it_among_those_who_share_passes(config, tmp_path) -> None:
    """Nobody is evaluated in between, so that clients stand at their own bases when they begin together."""
    allowed_code.allow([name := "tests.simulations.test_unlike_bases:by_name"])
    losses = {}
    for together in (1, 3):
        planned = replace(
            config,
            clients=replace(config.clients, plan=name),
            eval=replace(config.eval, every=9),
            server=replace(config.server, together=together),
        )
        done = fedft.simulate(planned, out=tmp_path / f"{together}")
        losses[together] = [{b: x["train_loss"] for b, x in line[BITS].items()} for line in done.lines[1:]]
    for alone, among in zip(losses[1], losses[3], strict=True):
        assert among == pytest.approx(alone, rel=1e-5)


def test_a_client_without_a_choice_of_bases_refuses_and_names_what_it_has(config) -> None:
    place = workplace.workplace(config)
    client = next(iter(place.clients.values()))
    with pytest.raises(PlanRefused, match=r"a base of 4 bits is asked for, here it has 32: \[model\] base_bits"):
        client._take_base(4)
