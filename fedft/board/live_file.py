"""`status.json` in a run's folder: what the run is doing at this moment, for whoever looks at it from outside.

    FORM               1
    began, updated     when this process took up the run, and when it last wrote the file
    ended, finished    whether this process is done with the run; whether the run reached its end
    phase              "enrolling", "training", "evaluating", or "between" them
    round              the round at work, or the version that is evaluated
    asked              clients that were asked, in the order of the round; barred: those in quarantine
    need               answers that are enough; deadline: when the exchange ends, None for never
    sites              name -> joined, asked, answered, loss, took (its last times to answer), doing, step, steps,
                       left_s; left: why, of one that takes part no more
    steered            what an operator has changed: paused, removed (sites), changed (key -> value); {} for nothing
    refused            the last refusals: time, round, client, code, reason
    memory             bytes of main memory that the run's process has, None where it cannot be asked
    floor              counters (`counters`) of lines that were cut off when the run was taken up again; None mostly

Times are seconds since 1970, by this machine's clock. The file is written by a thread of its own, at most once a second
and not fsynced: the run never waits for it, and nothing of the run depends on it. It is written whole or not at all.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedft.board import counters, status_form
from fedft.board.line_sums import LineSums

log = logging.getLogger(__name__)

NAME = "status.json"
FORM = 1
WRITE_S = 1.0  # between two writes at least; of a very long file more, so that writing takes a twentieth of the time
BEAT_S = 5.0  # between two writes at most: whoever reads knows that the run is alive
KEEP_REFUSED = 100
KEEP_TIMES = 5  # of a site's answers: what it takes now, rather than what it once took


class LiveFile:
    """An observer of one run that keeps `status.json` in its folder up to date until it hears "ended"."""

    def __init__(self, folder: Path, version: int | None = None) -> None:
        """Begin the file; what one of an earlier process says of answers and refusals is taken over.

        `version`: of the state from which the run goes on, whose later lines of metrics.jsonl are about to be cut off;
        None: none are.
        """
        self._path, self._lock, self._stop = folder / NAME, threading.Lock(), threading.Event()
        before = read(folder) or {}
        sites = {name: {"joined": False, "took": s["took"]} for name, s in before.get("sites", {}).items()}
        self._facts: dict[str, Any] = {
            "form": FORM, "began": time.time(), "ended": False, "finished": False, "phase": "enrolling", "round": None,
            "asked": [], "barred": [], "need": None, "deadline": None, "sites": sites,
            "refused": before.get("refused", []), "steered": {},
            "floor": _floor(folder, version, before.get("floor")),
        }  # fmt: skip
        self._grace_s: float | None = None
        self._answers = 0
        self._changed, self._wrote, self._cost, self._told = True, 0.0, 0.0, False
        self._thread = threading.Thread(target=self._keep, name="status.json", daemon=True)
        self._write()
        self._thread.start()

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Take one event of the run, see `fedft.reports.observers`; the disk is not touched but for "ended"."""
        with self._lock:
            take = getattr(self, f"_{kind}", None) if kind in EVENTS else None
            if take is not None:
                take(info)
                self._changed = True
        if kind == "ended":
            self._stop.set()
            self._thread.join()
            self._write()

    def _enrolling(self, info: Mapping[str, Any]) -> None:
        for client in info["clients"]:
            self._site(client)

    def _enrolled(self, info: Mapping[str, Any]) -> None:
        self._site(info["client"])["joined"] = True

    def _joined(self, info: Mapping[str, Any]) -> None:
        self._site(info["client"]).pop("left", None)

    def _left(self, info: Mapping[str, Any]) -> None:
        self._site(info["client"])["left"] = str(info.get("why") or "")

    def _round(self, info: Mapping[str, Any]) -> None:
        self._facts |= {"phase": "training", "round": info["round"], "barred": list(info.get("barred", ()))}
        self._begin(info["asked"])
        for client in info.get("recovered", ()):  # in the journal of a process that was killed in this round
            self._answer(client)

    def _evaluating(self, info: Mapping[str, Any]) -> None:
        self._facts |= {"phase": "evaluating", "round": info["version"]}
        self._begin(info["asked"])
        self._asking({"clients": info["asked"], **{k: info.get(k) for k in ("need", "deadline_s", "grace_s")}})

    def _asking(self, info: Mapping[str, Any]) -> None:
        """An attempt at the round begins: these clients are asked, again if they did not answer before."""
        now, limit = time.time(), info["deadline_s"]
        self._facts |= {"need": info["need"], "deadline": None if limit is None else now + limit}
        self._grace_s = info["grace_s"]
        for client in info["clients"]:
            self._site(client).update(asked=now, answered=None, refused=None)

    def _begin(self, asked: list[str]) -> None:
        self._facts |= {"asked": list(asked), "need": None, "deadline": None}
        self._answers = 0
        for site in self._facts["sites"].values():
            for key in ("asked", "answered", "refused", "loss", "doing", "step", "steps", "left_s"):
                site.pop(key, None)

    def _terms(self, info: Mapping[str, Any]) -> None:
        """The exchange at work ends otherwise than was said: somebody has left, or the operator has changed a key."""
        f, limit = self._facts, info["deadline_s"]
        f |= {"need": info["need"], "deadline": None if limit is None else time.time() + limit - info["elapsed_s"]}
        self._grace_s = info["grace_s"]

    def _steered(self, info: Mapping[str, Any]) -> None:
        self._facts["steered"] = dict(info)

    def _admitted(self, info: Mapping[str, Any]) -> None:
        site = self._answer(info["client"])
        site["loss"] = info["metrics"].get("loss")
        if not info.get("timed", True):
            site["answered"] = site.get("asked") or site["answered"]
        elif site.get("asked") is not None:  # not one that was found on disk
            site["took"] = [*site["took"], round(site["answered"] - site["asked"], 3)][-KEEP_TIMES:]

    def _measured(self, info: Mapping[str, Any]) -> None:
        self._answer(info["client"])

    def _answer(self, client: str) -> dict[str, Any]:
        """Note an answer that counts, and when the exchange ends if it is the last that was needed."""
        site = self._site(client)
        self._answers += site.get("answered") is None
        site.update(answered=time.time(), joined=True, doing=None, step=None, steps=None, left_s=None)
        f = self._facts
        if f["deadline"] is not None and self._grace_s is not None and f["need"] and self._answers >= f["need"]:
            f["deadline"] = min(f["deadline"], site["answered"] + self._grace_s)
        return site

    def _progress(self, info: Mapping[str, Any]) -> None:
        told = {k: info.get(k) for k in ("doing", "step", "steps", "left_s")}
        self._site(info["client"]).update(told, joined=True, heard=time.time())

    def _refused(self, info: Mapping[str, Any]) -> None:
        told = {
            "time": time.time(),
            "round": self._facts["round"],
            **{k: info[k] for k in ("client", "code", "reason")},
        }
        self._facts["refused"] = [*self._facts["refused"], told][-KEEP_REFUSED:]
        if (site := self._facts["sites"].get(info["client"])) and site.get("answered") is None:
            site["refused"] = info["code"]

    def _line(self, info: Mapping[str, Any]) -> None:
        self._facts |= {"phase": "between", "round": info["version"], "need": None, "deadline": None}

    def _ended(self, info: Mapping[str, Any]) -> None:
        self._facts |= {"ended": True, "finished": info["summary"] is not None, "deadline": None}

    def _site(self, client: str) -> dict[str, Any]:
        """What is known of a client; made if it is new."""
        found: dict[str, Any] = self._facts["sites"].setdefault(client, {"joined": False, "took": []})
        return found

    def _keep(self) -> None:
        """Write what has changed until the run ends."""
        while not self._stop.wait(max(WRITE_S, 20 * self._cost)):
            if self._changed or time.monotonic() >= self._wrote + BEAT_S:
                self._write()

    def _write(self) -> None:
        """Replace the file by one that says how things are. A disk that does not take it is told of once."""
        began = time.monotonic()
        with self._lock:
            self._changed = False
            text = json.dumps({**self._facts, "memory": memory(), "updated": time.time()})
        aside = self._path.with_name(NAME + ".tmp")
        try:
            aside.write_text(text, encoding="utf-8")
            os.replace(aside, self._path)
        except OSError as e:
            if not self._told:
                log.warning("%s: cannot be written (%s); the run goes on", self._path, e.strerror)
            self._told = True
        self._wrote = time.monotonic()
        self._cost = self._wrote - began


EVENTS = frozenset(
    ("enrolling", "enrolled", "round", "asking", "evaluating", "admitted", "measured", "progress", "refused", "line",
     "ended", "joined", "left", "terms", "steered")
)  # fmt: skip
"""Kinds of events that change the file; each is a method of `LiveFile` behind an underscore."""


def _floor(folder: Path, version: int | None, before: dict[str, Any] | None) -> dict[str, Any] | None:
    """How far the counters are before lines are cut off, or once were; None where none ever was."""
    lines = LineSums(folder / "metrics.jsonl")
    if version is not None:
        lines.read()
    if version is None or lines.version <= version:
        return before
    return counters.most(counters.of(lines), before or counters.NONE)


def memory() -> int | None:
    """Bytes of main memory that this process has; None where the system does not say so in /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def read(folder: Path) -> dict[str, Any] | None:
    """The facts in a run folder's `status.json`; None if there is no such file, or none that this version reads."""
    try:
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        whole = found["form"] == FORM and all("took" in site for site in found["sites"].values())
        floor = found.get("floor")
        whole = whole and (floor is None or not status_form.wrong(floor, status_form.FLOOR))
        return found if whole and isinstance(found["refused"], list) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
