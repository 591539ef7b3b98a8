"""Clients whose bases are of unlike precision in one run: taken, told apart in the record, and its state is one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import fedft
from fedft import run_file
from fedft.config import Model
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
