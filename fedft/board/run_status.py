"""What a run folder says of its run, running or finished, from its files alone.

    reader = RunReader(folder)
    reader.status()            the facts of now; as often as you like, only what was added is read again

A status has these keys, None where nothing is known:

    form, name               1; the folder's name
    state                    "running", "finished", "stopped" (by its process), or "silent": running as far as is known,
                             but nothing was heard for SILENT_S: killed, or the machine stands still
    strategy, model, seed    of the run file
    phase, at_work           of `status.json` while the run is running: what it does, and at which round
    round, rounds            version of the newest state, and how many there are to be
    asked, answered, missing names of this round's clients, while it is at work; need: answers that are enough
    deadline, updated        times, seconds since 1970: when the exchange ends; when the run last said something
    barred                   name -> why
    steered                  what its operator has changed while it ran, by `status.json`: paused (true or false),
                             removed (names of sites), changed (key -> value); {} where nothing is
    loss, first_loss, train_loss
    bytes_up, bytes_down     of all clients and rounds, evaluations too
    seconds, left_s          of all rounds; about how many the rounds that are left will take
    round_s                  seconds of the newest round
    disk_bytes, disk_free    of the folder; of its disk
    memory_bytes             main memory of the run's process, while it is running
    floor                    counters of a time before lines were cut off (`counters`); None mostly
    adapter                  whether model/ is there
    written_by               which fedft wrote the state last, and in which format
    sites                    a list: name, state (`SITE_STATES`), loss, doing, counted (rounds in which it counted),
                             refused, up, down (bytes), took_s (mean of its last answers), left_s, bits (of its base,
                             where that is not in the run's precision)
    refusals                 a list, newest first: time, round, client, code, reason; refused: code -> how many
    epsilon                  what was spent of privacy so far
    privacy                  under differential privacy: mode, delta, epsilon_why (None: there is an epsilon), and
                             rounds_left, how many rounds the budget holds
    curve                    a list, a point per state: round, loss, train_loss, bytes, seconds; at most MAX_POINTS
"""

import os
import shutil
import time
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from fedft import durable
from fedft.board import live_file, status_form
from fedft.board.line_sums import MAX_REFUSALS, LineSums
from fedft.errors import ConfigError

SILENT_S = 20.0  # four beats of `status.json`: a busy machine may miss one
DISK_S = 5.0  # between two looks at how large the folder is
MAX_POINTS = 1000
SITE_STATES = ("waiting", "working", "held", "answered", "refused", "idle", "absent", "barred", "left")
"""waiting: asked and not heard of; working: asked, and says what it does; held: asked, and says what it waits for;
idle: not asked now; absent: not heard of since the run's process began; left: takes part no more."""
SAYING = ("working", "held", "left")
"""States with words beside them."""
HELD = ("waiting for", "outside its hours")
"""How a site begins that does not work yet at what it is asked."""


class RunReader:
    """Reads one run folder. Used by one thread at a time; nothing is written, and no lock is taken."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of a run; that it is one is asked by `status`."""
        self.folder = folder
        self._config: dict[str, Any] = {}
        self._lines = LineSums(folder / "metrics.jsonl")
        self._disk, self._disk_at = 0, -DISK_S

    def status(self) -> dict[str, Any]:
        """The run's status, see above. Raises ConfigError, in one line, for a folder that is no run."""
        config = self._settings()
        lines = self._lines
        lines.read()
        live, now = live_file.read(self.folder), time.time()
        done = (self.folder / "summary.json").exists()
        state = _state(live, done, now)
        rounds, version = config["rounds"], lines.version
        measured = [p for p in lines.curve if p["loss"] is not None]
        left = None
        if state == "running" and config["budget"] is None and lines.took:
            left = max(0, rounds - version) * fmean(lines.took)
        end = lines.curve[-1] if lines.curve else {}
        refusals = (live or {}).get("refused") or lines.refused
        return {
            "form": 1, "name": self.folder.resolve().name, "state": state,
            **{k: config[k] for k in ("strategy", "model", "seed")},
            **_at_work(live if state == "running" else None, version),
            "updated": live["updated"] if live else None, "round": version, "rounds": rounds,
            "barred": self._barred(live), "steered": _steered(live),
            "loss": measured[-1]["loss"] if measured else None, "first_loss": measured[0]["loss"] if measured else None,
            "train_loss": lines.train_loss,
            "bytes_up": end.get("bytes_up", 0), "bytes_down": end.get("bytes_down", 0),
            "seconds": end.get("seconds", 0.0), "left_s": left,
            "round_s": lines.took[-1] if lines.took else None,
            "memory_bytes": live.get("memory") if live and state == "running" else None,
            "floor": live.get("floor") if live else None,
            **self._room(), "adapter": (self.folder / "model").is_dir(),
            "written_by": durable.written_by(self.folder / "state") or None,
            "sites": self._sites(live, state, now),
            "refusals": list(reversed(refusals[-MAX_REFUSALS:])), "refused": dict(lines.codes),
            "curve": _thinned(lines.curve), **_spent(config, lines.privacy),
        }  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """What is said of the run file, which does not change; `rounds` and `budget` may when a run is resumed."""
        path = self.folder / "config.toml"
        try:
            said = tomllib.loads(path.read_text(encoding="utf-8"))
            server = said.get("server", {})
            return {
                "strategy": str(said["strategy"]["name"]), "model": str(said["model"]["id"]),
                "seed": server.get("seed"),
                "rounds": int(server["rounds"]), "budget": server.get("budget"),
                "privacy": dict(said.get("privacy", {})),
            }  # fmt: skip
        except FileNotFoundError:
            raise ConfigError(f"{self.folder}: holds no run (no config.toml); wanted a run folder") from None
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError(f"{path}: cannot be read as a run's config.toml; was it changed by hand?") from e

    def _barred(self, live: Mapping[str, Any] | None) -> dict[str, str]:
        """Clients in quarantine, each with the last refusal of its own."""
        why = {r["client"]: f"{r['code']}: {r['reason']}" for r in self._lines.refused}
        return {c: why.get(c, "refused too often") for c in (live or {}).get("barred", ())}

    def _room(self) -> dict[str, int]:
        """Bytes of the folder's files, and how many its disk has left."""
        if time.monotonic() >= self._disk_at + DISK_S:
            total = 0
            for root, _, names in os.walk(self.folder):
                for name in names:
                    with suppress(OSError):  # it may be gone by now
                        total += os.lstat(os.path.join(root, name)).st_size
            self._disk, self._disk_at = total, time.monotonic()
        return {"disk_bytes": self._disk, "disk_free": shutil.disk_usage(self.folder).free}

    def _sites(self, live: Mapping[str, Any] | None, state: str, now: float) -> list[dict[str, Any]]:
        """Every client that anything is known of, in the order of names."""
        told, removed = live["sites"] if live else {}, _steered(live).get("removed", ())
        barred, asked = set((live or {}).get("barred", ())), set((live or {}).get("asked", ()))
        found = []
        for name in sorted({*told, *self._lines.clients}, key=str.encode):
            s, sums = dict(told.get(name, {})), self._lines.clients.get(name, {})
            if name in removed:
                s.setdefault("left", "removed by the server's operator")
            took = fmean(s["took"]) if s.get("took") else None
            at = _site_state(s, name in asked, name in barred, state == "running", bool(sums.get("counted")))
            left = s.get("left_s")
            if left is None and at in ("waiting", "working") and took is not None and s.get("asked") is not None:
                left = max(0.0, s["asked"] + took - now)
            said = s.get("left") if at == "left" else s.get("doing")
            step = f"step {s['step']:g} of {s['steps']:g}" if s.get("step") is not None and s.get("steps") else None
            found.append(
                {
                    "name": name, "state": at, "doing": (step or said or None) if at in SAYING else None,
                    "loss": sums.get("loss"), "counted": sums.get("counted", 0), "refused": sums.get("refused", 0),
                    "up": sums.get("up", 0), "down": sums.get("down", 0), "took_s": took,
                    "left_s": left if at in ("waiting", "working") else None, "bits": sums.get("bits"),
                }
            )  # fmt: skip
        return found


def _spent(config: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """`epsilon` and `privacy` of a status, from the run file and what the newest line says."""
    mode = config["privacy"].get("mode", "none")
    if mode == "none":
        return {"epsilon": None, "privacy": None}
    why, left = told.get("epsilon_why"), told.get("rounds_left")
    facts = {"mode": str(mode), "delta": config["privacy"].get("delta"), "epsilon_why": why, "rounds_left": left}
    return {"epsilon": told.get("epsilon"), "privacy": facts}


def shown_state(status: Mapping[str, Any]) -> str:
    """The state of a run in a word: "paused" for one that is running and begins no round until its operator says so."""
    waits = status["state"] == "running" and status["phase"] not in ("training", "evaluating")
    return "paused" if waits and status["steered"].get("paused") else status["state"]


def _state(live: Mapping[str, Any] | None, done: bool, now: float) -> str:
    """The state of a run: what its process said last, and when; without a `status.json`, whether it has a summary."""
    if live is None:
        return "finished" if done else "stopped"
    if live["ended"]:
        return "finished" if live["finished"] else "stopped"
    return "running" if now - live["updated"] < SILENT_S else "silent"


def _at_work(live: Mapping[str, Any] | None, version: int) -> dict[str, Any]:
    """What a running run does: phase, at_work, who is asked and who has answered, and until when.

    `version` is that of the newest line of metrics.jsonl: a round that led there is over, whatever status.json still
    says, which is up to a second behind.
    """
    if live is not None and live["phase"] == "training" and live["round"] < version:
        live = {**live, "phase": "between", "round": version, "need": None, "deadline": None}
    if live is None:
        return {
            "phase": None,
            "at_work": None,
            "asked": [],
            "answered": [],
            "missing": [],
            "need": None,
            "deadline": None,
        }
    asked = live["asked"] if live["phase"] in ("training", "evaluating") else []
    answered = [c for c in asked if live["sites"].get(c, {}).get("answered") is not None]
    return {
        "phase": live["phase"], "at_work": live["round"], "asked": asked, "answered": answered,
        "missing": [c for c in asked if c not in set(answered)], "need": live["need"], "deadline": live["deadline"],
    }  # fmt: skip


def _steered(live: Mapping[str, Any] | None) -> dict[str, Any]:
    """What `status.json` says that an operator has changed, as far as it is of the form that is shown."""
    said = live.get("steered") if live else None
    return said if isinstance(said, dict) and said and not status_form.wrong(said, status_form.STEERED) else {}


def _site_state(site: Mapping[str, Any], asked: bool, barred: bool, running: bool, counted: bool) -> str:
    """One of SITE_STATES."""
    if site.get("left") is not None:
        return "left"
    if barred:
        return "barred"
    asked = asked and running
    if asked and site.get("joined"):
        if site.get("answered") is not None:
            return "answered"
        if site.get("refused"):
            return "refused"
        if not site.get("doing"):
            return "waiting"
        return "held" if str(site["doing"]).startswith(HELD) else "working"
    return "idle" if site.get("joined") or (counted and not asked) else "absent"


def _thinned(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MAX_POINTS of the points, the last one among them."""
    step = -(-len(curve) // MAX_POINTS)
    return curve if step <= 1 else curve[-1::-step][::-1]
