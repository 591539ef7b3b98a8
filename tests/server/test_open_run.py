"""One way to open a run: what is looked at before any work, what an attempt leaves, and who may have the folder."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedft import durable, run_file
from fedft.config import RunConfig
from fedft.contract import State
from fedft.errors import ConfigError
from fedft.server import open_run
from fedft.server.archive import blocks

HERE: Any = SimpleNamespace(base=SimpleNamespace(digest="d" * 64, tokenizer_digest="e" * 64), layout=None, handle=None)


def _config(**server: Any) -> RunConfig:
    resolved = {"model": {"dtype": "float32"}, "data": {"max_length": 96}}
    return run_file.from_dict({**resolved, "strategy": {"name": "fedit"}, "server": {"rounds": 3, **server}})


def _quiet(kind: str, info: Any) -> None:
    pass


def test_a_strategy_that_makes_no_sense_leaves_no_folder(tmp_path: Path) -> None:
    config = replace(_config(), strategy=replace(_config().strategy, name="no_such_one"))
    with (
        pytest.raises(ConfigError, match="no strategy 'no_such_one'"),
        open_run.opened(config, tmp_path / "run", resume=False, observe=_quiet),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_an_attempt_that_ended_before_its_model_was_loaded_is_begun_again(tmp_path: Path) -> None:
    """The folder holds nothing then that looks like a run."""
    for _ in range(2):
        with open_run.opened(_config(), tmp_path, resume=False, observe=_quiet) as held:
            assert held.version == -1  # and then it ends
    assert not (tmp_path / "config.toml").exists()


def test_nobody_else_opens_a_run_s_folder_until_the_block_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with (
            open_run.opened(_config(), tmp_path, resume=False, observe=_quiet),
            pytest.raises(ConfigError, match="another process is running this run"),
            open_run.opened(_config(), tmp_path, resume=False, observe=_quiet),
        ):
            pass


def test_who_the_run_is_of_is_asked_when_its_config_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    monkeypatch.setattr(open_run.run_outputs, "write_config", lambda *args: order.append("config"))

    def who() -> Any:
        order.append("who")
        yield b"salt"

    with open_run.opened(_config(), tmp_path, resume=False, observe=lambda kind, info: order.append(kind)) as held:
        run = held.begin(HERE, who())
    assert order == ["preparing", "config", "who", "ended"]
    fresh = open_run.fresh(_config(), held.recipe, HERE, tmp_path / "other", [b"salt"])
    assert run.job == fresh.job
    assert open_run.fresh(_config(), held.recipe, HERE, tmp_path / "third", [b"pepper"]).job != run.job


def test_a_run_that_is_resumed_has_the_lines_up_to_its_newest_state(tmp_path: Path) -> None:
    with open_run.opened(_config(), tmp_path, resume=False, observe=_quiet) as held:
        held.store.save(State(0, {}), {})
        held.store.save(State(1, {}), {})
        held.store.save(State(2, {}), {})
    (tmp_path / "config.toml").write_text(
        'strategy = {name = "fedit"}\nserver = {rounds = 3}\ndata = {max_length = 96}\nlimits = {max_share = 1.0}\n'
    )
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"version": {v}}}\n' for v in range(4)))
    with open_run.opened(_config(), tmp_path, resume=True, observe=_quiet) as held:
        assert held.version == 2
        assert [line["version"] for line in held.begin(HERE, []).metrics.lines] == [0, 1, 2]
    with (
        pytest.raises(ConfigError, match="is at round 2, wanted at least as many rounds, got 1"),
        open_run.opened(_config(rounds=1), tmp_path, resume=True, observe=_quiet),
    ):
        pass


def test_a_fresh_run_leaves_nothing_for_others_to_read(tmp_path: Path) -> None:
    run = open_run.fresh(_config(), open_run.strategies.of(_config()), HERE, tmp_path, [])
    assert run.metrics.lines == []
    assert {p.name for p in tmp_path.iterdir()} == {"state", "metrics.jsonl"}


@pytest.mark.parametrize(("deployed", "usual"), [(False, 1.0), (True, 0.5)])
def test_the_largest_share_of_a_client_is_written_down_as_it_is_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deployed: bool, usual: float
) -> None:
    """Left out it depends on the kind of run; `config.toml` and the job have it, so that either run can have it."""
    monkeypatch.setattr(open_run.run_outputs, "VERSIONS", ())
    for said, wanted in ((None, usual), (0.75, 0.75)):
        limits = replace(_config().limits, max_share=said)
        folder = tmp_path / str(said)
        config = replace(_config(), limits=limits)
        with open_run.opened(config, folder, resume=False, observe=_quiet, deployed=deployed) as held:
            run = held.begin(HERE, [])
        assert run_file.load(folder / "config.toml").limits.max_share == wanted
        assert run.job.table("limits") == {"max_share": wanted}
        again = open_run.resolved(run_file.load(folder / "config.toml"), deployed=not deployed)
        assert again.limits.max_share == wanted


@pytest.mark.parametrize("on", [False, True])
def test_rounds_are_archived_where_the_run_file_says_so(tmp_path: Path, on: bool) -> None:
    state = State(0, {"w": torch.zeros(2)})
    record = {"record": {"weights": {"anna": 3}}, "run": "0" * 16, "roster": 1}
    with open_run.opened(_config(archive=on), tmp_path, resume=False, observe=_quiet) as held:
        held.store.save(state, {})
        held.store.keep_plans(0, {"anna": b"plan"})
        held.store.journal(0, "anna", b"update")
        held.store.save(replace(state, version=1), record)
        assert held.store.read(0, "anna") is None, "the journal is dropped"
    assert (tmp_path / "archive").exists() == on
    if on:
        kept = [(b.said["what"], b.data) for b in blocks(tmp_path / "archive" / "round-00000000.fedft")]
        assert kept == [("round", b""), ("plan", b"plan"), ("update", b"update")]


@pytest.mark.parametrize(("deployed", "archive"), [(False, False), (False, True), (True, False)])
def test_an_update_waits_for_the_disk_where_sites_or_an_archive_count_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deployed: bool, archive: bool
) -> None:
    waits: list[int] = []
    with open_run.opened(_config(archive=archive), tmp_path, resume=False, observe=_quiet, deployed=deployed) as held:
        monkeypatch.setattr(durable.os, "fsync", waits.append)
        held.store.journal(0, "anna", b"update")
    assert bool(waits) == (deployed or archive)
