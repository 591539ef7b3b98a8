"""`fedft queue`: several runs of one server, one after another or up to so many side by side.

    runs = queue_runs.planned(["a.toml", "b.toml"], out)            out/a, out/b: as `fedft server` makes them
    Queue(runs, place, out, together=2, observe=...).carry_out()    the runs that did not finish, and why

One port, one key folder and one roster serve all of them. Which runs there are is said by the command alone: a further
one is added by the same command with one more file, after a stop that loses nothing. A folder that is read anew between
runs would take in half-written files, and nobody could see from the command what a server is going to do. What the
queue knows it finds in the run folders, so there is nothing to be lost: a run that has its results is not run again,
any other goes on where it was. `queue.json` says how the queue stands, for whoever looks; it is not read by the queue.

Each run's engine has a thread. One of them computes at a time, and the others wait for their sites meanwhile: torch's
random state and other facts of the process are as in a server of one run, the bytes are the same, and what a round
needs in memory is needed once. The base model of each run stays loaded while the run goes on.
"""

import gc
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedft import durable
from fedft import run_file as configs
from fedft.config import RunConfig
from fedft.errors import ConfigError, FedftError, ModelHeldBack, RunPaused, in_one_line
from fedft.models import dtypes
from fedft.reports import metric_log
from fedft.reports.observers import Observers
from fedft.server import app, budget, open_run, run_folder
from fedft.server.queue_link import SharedLink
from fedft.update import RUNS_AT_ONCE
from fedft.wire.messages import MAX_MESSAGE_BYTES

log = logging.getLogger(__name__)

STOP_S = 60.0  # for a run to end a step after SIGTERM; what is cut off then is done again, as after a kill
THREAD = "run "  # name of a run's thread, before the run's own


@dataclass(frozen=True)
class QueuedRun:
    """A run of the queue."""

    name: str
    """The run file's name without its ending."""
    config: RunConfig
    folder: Path

    def finished(self) -> bool:
        """Whether the folder holds the results of this run file. One that now asks for more rounds has none yet."""
        try:
            summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
            before = dtypes.resolved(configs.load(self.folder / "config.toml"))
            lines = metric_log.read(self.folder / "metrics.jsonl")
            whole = bool(lines) and summary["state_digest"] == lines[-1]["state_digest"]
        except (OSError, ValueError, KeyError, TypeError, FedftError):
            return False
        now = open_run.resolved(self.config, deployed=True)
        return whole and not run_folder.changed(before, now) and budget.over(now, lines)


def planned(files: Sequence[Path], out: Path, overrides: Sequence[str] = ()) -> list[QueuedRun]:
    """The runs of these run files, each read and checked, in their order.

    Args:
        files: run files; the name of each without its ending is the run's.
        out: folder of the run folders.
        overrides: "table.key=value" for all of them.
    Raises:
        ConfigError: a file that is no run file, or two whose runs would have one name.
    """
    found: dict[str, QueuedRun] = {}
    for file in files:
        name = file.stem
        if (other := found.get(name.lower())) is not None:
            raise ConfigError(
                f"{file}: a run {other.name!r} is in the queue already; runs are called as their files are"
            )
        if not name.strip(". ") or name != name.strip():
            raise ConfigError(f"{file}: a run folder cannot be called {name!r}; give the file another name")
        found[name.lower()] = QueuedRun(name, configs.load(file, overrides), out / name)
    return list(found.values())


class Turns:
    """The clock of all engines: who waits by it lets another one compute. Raises KeyboardInterrupt after `stop`."""

    def __init__(self) -> None:
        self._lock, self._stopped = threading.Lock(), threading.Event()

    def monotonic(self) -> float:
        """Seconds from any moment."""
        return time.monotonic()

    def sleep(self, seconds: float, /) -> None:
        """Return after so many seconds, once no other engine computes; called by the one that does."""
        self._lock.release()
        try:
            self._stopped.wait(seconds)
        finally:
            self._lock.acquire()
        self._go_on()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Compute inside, alone but while sleeping."""
        with self._lock:
            self._go_on()
            yield

    def stop(self) -> None:
        """Interrupt every engine at its next look at the clock."""
        self._stopped.set()

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise KeyboardInterrupt


class Queue:
    """Runs of one server, to be carried out once."""

    def __init__(
        self, runs: Sequence[QueuedRun], place: app.Place, out: Path, *, together: int = 1, observe: Observers = ()
    ) -> None:
        """Raises ConfigError for a number of runs side by side that sites do not serve.

        Args:
            runs: with unlike names and folders, in the order in which they begin.
            place: keys and the address to listen on.
            out: folder for `queue.json`, which is made if missing.
            together: how many runs go on side by side, from 1 to RUNS_AT_ONCE.
            observe: who hears what happens in each run, in the run's thread.
        """
        if not 1 <= together <= RUNS_AT_ONCE:
            raise ConfigError(f"--together {together}: wanted 1 to {RUNS_AT_ONCE}, of which sites take part in at once")
        self._runs, self._place, self._out, self._observe = runs, place, out, observe
        self._together, self._turns = together, Turns()
        self._waiting = deque(runs)
        self._lock = threading.Lock()
        self._states = {run.name: {"name": run.name, "state": "waiting", "why": ""} for run in runs}
        self._failed: dict[str, Exception] = {}

    def carry_out(self) -> dict[str, Exception]:
        """Carry all runs to their ends; why by name of each run that did not get there.

        Raises:
            ConfigError, KeyFault: keys, roster or port cannot be used; no run was begun.
            KeyboardInterrupt: as it came to this thread; all runs have stopped, or are left where they are.
        """
        office = app.Office.at(self._place)
        link = SharedLink(app.link_of(office, MAX_MESSAGE_BYTES))
        workers = [
            threading.Thread(target=self._work, args=(office, link), name=f"queue-{n}", daemon=True)
            for n in range(min(self._together, len(self._runs)))
        ]
        try:
            self._say()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        finally:
            self._turns.stop()
            until = time.monotonic() + STOP_S
            for worker in workers:
                worker.join(max(0.0, until - time.monotonic()))
            link.close()
        return self._failed

    def _work(self, office: app.Office, link: SharedLink) -> None:
        """Carry out run after run, until none waits or the queue is stopped."""
        try:
            while True:
                with self._turns.one():  # taken out in the turn: who takes the next run begins it
                    if not self._waiting:
                        return
                    run = self._waiting.popleft()
                    threading.current_thread().name = THREAD + run.name
                    self._one(run, office, link)
                    gc.collect()  # its base model, before another one is loaded
        except KeyboardInterrupt:
            log.info("stopped")

    def _one(self, run: QueuedRun, office: app.Office, link: SharedLink) -> None:
        try:
            if run.finished():
                log.info("has its results already, in %s", run.folder)
                return self._say(run, "finished")
            self._say(run, "running")
            summary = app.coordinate(
                run.config, office, run.folder, link.part, observe=self._observe, clock=self._turns
            )  # fmt: skip
        except FedftError as e:
            log.error("%s", e)
            self._ended(run, e)
        except Exception as e:
            log.exception("failed; the other runs go on")
            self._ended(run, e)
        except KeyboardInterrupt:
            self._say(run, "stopped", "the queue was stopped")
            raise
        else:
            self._say(run, "finished")
            log.info("finished: %s", json.dumps(summary, sort_keys=True))

    def _ended(self, run: QueuedRun, e: Exception) -> None:
        with self._lock:
            self._failed[run.name] = e
        states: dict[type[Exception], str] = {RunPaused: "paused", ModelHeldBack: "held back"}
        self._say(run, next((x for of, x in states.items() if isinstance(e, of)), "failed"), in_one_line(e))

    def _say(self, run: QueuedRun | None = None, state: str = "", why: str = "") -> None:
        """Write how the queue stands into queue.json; a disk that does not take it costs nothing."""
        with self._lock:
            if run is not None:
                self._states[run.name].update(state=state, why=why)
            text = json.dumps({"form": 1, "runs": list(self._states.values())}, indent=1)
            try:
                durable.write(self._out / "queue.json", text.encode())
            except RunPaused as e:
                log.warning("%s", e)


def failure(failed: dict[str, Exception], runs: int) -> FedftError:
    """One error for the runs that did not finish: a pause if any of them can go on as it is, else as the first's.

    Where all of them have ended, and only their models are held back, it says that.
    """
    said = "; ".join(f"{name}: {in_one_line(e)}" for name, e in failed.items())
    errors = list(failed.values())
    kind = next((e for e in errors if isinstance(e, RunPaused)), errors[0])
    text = f"{len(failed)} of {runs} runs did not finish, the same command goes on with them: {said}"
    if all(isinstance(e, ModelHeldBack) for e in errors):
        text = f"{len(failed)} of {runs} runs have ended with a model that is held back: {said}"
    return type(kind)(text) if isinstance(kind, FedftError) else FedftError(text)


class NamesTheRun(logging.Filter):
    """A log filter that passes everything: a message from a run's thread gets the run's name in front."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True; the record's text is changed, once however many handlers there are."""
        thread = record.threadName or ""
        if thread.startswith(THREAD) and "queued" not in vars(record):
            vars(record)["queued"] = run = thread.removeprefix(THREAD)  # `run` of `--log json` is the identifier
            record.msg, record.args = f"{run}: {record.getMessage()}", ()
        return True
