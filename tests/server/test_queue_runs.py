"""`fedft queue`: the order of runs, what becomes of one that fails, and what is not run again."""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from one_line import one_line

from fedft.errors import ConfigError, DataError, FedftError, ModelHeldBack, RunPaused
from fedft.server import app, open_run, queue_runs, run_outputs
from fedft.server.queue_runs import NamesTheRun, Queue, failure, planned
from fedft.update import RUNS_AT_ONCE

FILE = '[model]\ndtype = "float32"\n[data]\nmax_length = 96\n[strategy]\nname = "fedit"\n[server]\nrounds = 3\n'
PLACE = app.Place(Path("keys"), ("127.0.0.1", 0))


def files(folder: Path, *names: str, text: str = FILE) -> list[Path]:
    """Run files of these names."""
    made = [folder / f"{name}.toml" for name in names]
    for file in made:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return made


Act = Callable[[Any], None]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A server without sites: what is done in a run is `acts[name]`, given its clock; who began is in `begun`."""
    it = SimpleNamespace(begun=[], ended=[], acts={}, closed=0, most=0)

    def coordinate(config: Any, office: Any, folder: Path, link_of: Any, *, observe: Any, clock: Any) -> dict[str, Any]:
        it.begun.append(folder.name)
        it.most = max(it.most, len(it.begun) - len(it.ended))
        try:
            it.acts.get(folder.name, lambda clock: clock.sleep(0.01))(clock)
        finally:
            it.ended.append(folder.name)
        finish(folder, config)
        return {"name": folder.name}

    def close() -> None:
        it.closed += 1

    monkeypatch.setattr(app, "coordinate", coordinate)
    monkeypatch.setattr(app, "link_of", lambda office, most: SimpleNamespace(close=close))
    monkeypatch.setattr(app.Office, "at", classmethod(lambda cls, place: None))
    return it


def finish(folder: Path, config: Any, digest: str = "d") -> None:
    """Leave what a finished run of this config leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    now = open_run.resolved(config, deployed=True)
    run_outputs.write_config(folder, now, SimpleNamespace(digest="d" * 64, tokenizer_digest="t"))  # type: ignore[arg-type]
    lines = [{"version": v, "state_digest": "d" if v == 3 else "x"} for v in range(4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"state_digest": digest}))


def states(out: Path) -> Mapping[str, str]:
    """State by run, as queue.json has it."""
    return {r["name"]: r["state"] for r in json.loads((out / "queue.json").read_text())["runs"]}


@pytest.mark.parametrize("together", [1, 2])
def test_runs_begin_in_their_order_and_so_many_go_on_side_by_side(
    server: SimpleNamespace, tmp_path: Path, together: int
) -> None:
    names = ["c", "a", "b", "d"]
    queue = Queue(planned(files(tmp_path, *names), tmp_path / "out"), PLACE, tmp_path / "out", together=together)
    assert queue.carry_out() == {}
    assert server.begun == names
    assert server.most == together
    assert states(tmp_path / "out") == dict.fromkeys(names, "finished")
    assert server.closed == 1


def test_a_run_that_pauses_or_fails_does_not_stop_the_others(server: SimpleNamespace, tmp_path: Path) -> None:
    def fails(e: Exception) -> Act:
        def act(clock: Any) -> None:
            raise e

        return act

    out = tmp_path / "out"
    server.acts = {"a": fails(RunPaused("below quorum")), "b": fails(DataError("no model")), "c": fails(KeyError("x"))}
    runs = planned(files(tmp_path, "a", "b", "c", "d"), out)
    failed = Queue(runs, PLACE, out, together=2).carry_out()
    assert sorted(failed) == ["a", "b", "c"]
    assert states(out) == {"a": "paused", "b": "failed", "c": "failed", "d": "finished"}
    found = failure(failed, len(runs))
    assert isinstance(found, RunPaused)
    for said in ("3 of 4 runs did not finish", "a: below quorum", "b: no model", "c: KeyError: 'x'"):
        assert said in str(found)
    del failed["a"]
    assert isinstance(failure({"b": failed["b"]}, 4), DataError)
    assert failure({"c": failed["c"]}, 4).exit_code == FedftError.exit_code == 1


def test_a_run_whose_model_is_held_back_has_not_failed(server: SimpleNamespace, tmp_path: Path) -> None:
    def held(clock: Any) -> None:
        raise ModelHeldBack("exposure 6 is above 4")

    out = tmp_path / "out"
    server.acts = {"a": held}
    found = Queue(planned(files(tmp_path, "a", "b"), out), PLACE, out).carry_out()
    assert states(out) == {"a": "held back", "b": "finished"}
    said = failure(found, 2)
    assert isinstance(said, ModelHeldBack)
    assert str(said).startswith("1 of 2 runs have ended with a model that is held back: a: exposure 6")


def test_a_finished_run_is_not_run_again_and_one_that_failed_is(server: SimpleNamespace, tmp_path: Path) -> None:
    def pause(clock: Any) -> None:
        raise RunPaused("later")

    out = tmp_path / "out"
    paths = files(tmp_path, "a", "b", "c")
    server.acts = {"b": pause}
    Queue(planned(paths, out), PLACE, out).carry_out()
    server.acts, server.begun = {}, []
    assert Queue(planned([*paths, *files(tmp_path, "new")], out), PLACE, out).carry_out() == {}
    assert server.begun == ["b", "new"]


@pytest.mark.parametrize(
    ("spoil", "again"),
    [
        (lambda folder, file: None, False),
        (lambda folder, file: file.write_text(FILE.replace("rounds = 3", "rounds = 4")), True),
        (lambda folder, file: file.write_text(FILE.replace("fedit", "flora")), True),
        (lambda folder, file: (folder / "summary.json").unlink(), True),
        (lambda folder, file: (folder / "summary.json").write_text('{"state_digest": "e"}'), True),
        (lambda folder, file: (folder / "summary.json").write_text("[]"), True),
        (lambda folder, file: (folder / "metrics.jsonl").unlink(), True),
        (lambda folder, file: (folder / "config.toml").write_text("x"), True),
    ],
    ids=["nothing", "more rounds", "another file", "no summary", "of before", "no object", "no lines", "no config"],
)
def test_a_run_is_finished_when_its_folder_has_the_results_of_this_run_file(
    tmp_path: Path, spoil: Callable[[Path, Path], Any], again: bool
) -> None:
    """All else goes the way of `fedft server`, which goes on with the run or says what is wrong."""
    (file,) = files(tmp_path, "a")
    (run,) = planned([file], tmp_path / "out")
    assert not run.finished()
    finish(run.folder, run.config)
    spoil(run.folder, file)
    (now,) = planned([file], tmp_path / "out")
    assert now.finished() is not again


def test_a_stop_reaches_every_run_and_none_is_begun_after_it(server: SimpleNamespace, tmp_path: Path) -> None:
    """As SIGTERM does it: the main thread is interrupted while it waits."""
    begun, out = threading.Event(), tmp_path / "out"
    server.acts = {"a": lambda clock: clock.sleep(60), "b": lambda clock: (begun.set(), clock.sleep(60))}
    queue = Queue(planned(files(tmp_path, "a", "b", "c"), out), PLACE, out, together=2)

    class Interrupted(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            if timeout is None:
                begun.wait(30)
                raise KeyboardInterrupt
            super().join(timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue_runs.threading, "Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.carry_out()
    assert sorted(server.ended) == ["a", "b"]
    assert states(out) == {"a": "stopped", "b": "stopped", "c": "waiting"}
    assert server.closed == 1


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("x/a", "y/a"), "a run 'a' is in the queue already"),
        (("x/a", "y/A"), "a run 'a' is in the queue already"),
        (("x/..",), "a run folder cannot be called"),
        (("x/ a",), "a run folder cannot be called"),
    ],
)
def test_names_that_are_no_folders_of_their_own_are_one_line(tmp_path: Path, names: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        planned(files(tmp_path, *names), tmp_path / "out")
    one_line(e)


def test_a_mistake_in_any_run_file_is_told_before_any_run_begins(tmp_path: Path) -> None:
    good, bad = files(tmp_path, "a"), files(tmp_path, "b", text=FILE + "round = 1\n")
    with pytest.raises(ConfigError, match=r"b\.toml.*'round'"):
        planned([*good, *bad], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("together", [0, RUNS_AT_ONCE + 1])
def test_no_more_runs_go_on_side_by_side_than_sites_take_part_in(tmp_path: Path, together: int) -> None:
    with pytest.raises(ConfigError, match=f"wanted 1 to {RUNS_AT_ONCE}") as e:
        Queue([], PLACE, tmp_path, together=together)
    one_line(e)


def test_log_lines_of_a_run_s_thread_name_it_once() -> None:
    said: list[str] = []
    handlers = [logging.Handler(), logging.Handler()]
    for handler in handlers:
        handler.addFilter(NamesTheRun())
        handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.Logger("a test's")
    log.handlers = handlers
    thread = threading.Thread(target=lambda: log.info("at %d %%", 7), name="run 100%d")
    thread.start()
    thread.join()
    log.info("all")
    assert said == ["100%d: at 7 %", "100%d: at 7 %", "all", "all"]
