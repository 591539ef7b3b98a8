"""What an operator changes of a run: through the admin socket while it goes on, or in the run file after a stop.

`steered.json` in the run folder, which other tools may read, is there once anything was changed:

    paused      null, or since when and by whom: no round begins
    removed     site -> since when and by whom: not asked in this run, though it is in the roster
    lifted      quarantines that were ended, each with the round from which it counts
    changes     keys in order of time: key, before, value, round, time, by; null for a key that is left out
    run_file    what the run file said of these keys when it was last read

`[server] deadline_s`, `quorum`, `grace_s`, `attempts` and `rounds` hold at once, in an open round too; `[eval]` from
the next evaluation on, `[limits]` from the next round that begins. A change names its round, so that a server that is
killed and started again judges an open round by what held in it. The file is on the disk before a change acts.
"""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedft import durable, run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError, StateDamaged
from fedft.server import run_folder
from fedft.server.run_folder import KEYS

FILE = "steered.json"
FORM = 1
RUN_FILE = "run file"
Resolve = Callable[[RunConfig], RunConfig]


@dataclass
class Steering:
    """The changes of one run. Its engine asks, any thread changes."""

    path: Path
    config: RunConfig
    """The run file of this start, resolved."""
    resolve: Resolve = lambda config: config
    """Fills in what a run file leaves to the machine and to the kind of run."""
    version: int = 0
    """Of the newest state."""
    open: bool = False
    """Whether a round is at work that leads on from there."""
    publish: Callable[[RunConfig], None] = lambda config: None
    """Called with the config as it is behind a change."""
    fits: Callable[[RunConfig], None] = lambda config: None
    """Raises ConfigError for a config that wants what evaluations of the run do not have."""
    said: dict[str, Any] = field(default_factory=dict)
    """The file's content."""
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _made: dict[int, RunConfig] = field(default_factory=dict)
    """Configs by round, until something changes."""

    def __post_init__(self) -> None:
        self.said = {"form": FORM, "paused": None, "removed": {}, "lifted": [], "changes": [], "run_file": {}}
        if self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
                if not isinstance(found, dict) or found.keys() != self.said.keys() or found["form"] != FORM:
                    raise ValueError("another form")
            except (OSError, ValueError) as e:
                raise StateDamaged(f"{self.path}: cannot be read or was altered; restore it, or delete it to go on "
                                   "with what the run file says") from e  # fmt: skip
            self.said = found

    # -- the engine asks ---------------------------------------------------------------------------------------------

    def config_at(self, round: int) -> RunConfig:
        """The run's config as it holds in this round, the same object until something changes."""
        with self._lock:
            changes = self.said["changes"]
            if not changes:
                return self.config
            if round not in self._made:
                self._made = {x: c for x, c in self._made.items() if x > round} | {
                    round: self._with(_values(changes, round))
                }
            return self._made[round]

    def fewest_rounds(self) -> int:
        """The smallest value that `[server] rounds` has had in this run: a site may have joined while it stood."""
        with self._lock:
            changed = [x for x in self.said["changes"] if x["key"] == "server.rounds"]
            return min([self.latest().server.rounds, *(int(x[k]) for x in changed for k in ("before", "value"))])

    def latest(self) -> RunConfig:
        """The run's config with all that was changed, also what holds from the next round on only."""
        return self.config_at(2**62)

    def begins(self, version: int) -> bool:
        """Whether the round that leads on from `version` may begin; then it is open. One that was begun may go on."""
        with self._lock:
            if not self.open and (self.said["paused"] or self.latest().server.rounds <= version):
                return False
            self.open = True
            return True

    def committed(self, version: int) -> None:
        """The round that was open is over: `version` is the newest state."""
        with self._lock:
            self.version, self.open = version, False

    def lifted(self, version: int) -> set[str]:
        """Sites whose quarantine ended before the round that leads on from `version`, and no earlier round began."""
        with self._lock:
            return {x["site"] for x in self.said["lifted"] if x["round"] == version}

    @property
    def paused(self) -> dict[str, Any] | None:
        """Since when and by whom the run is paused; None if it is not."""
        with self._lock:
            found: dict[str, Any] | None = self.said["paused"]
            return found

    @property
    def removed(self) -> Mapping[str, Any]:
        """The sites that are taken out of this run."""
        with self._lock:
            return dict(self.said["removed"])

    def facts(self) -> dict[str, Any]:
        """What was changed, for status.json and summary.json: paused, removed, and the value of each key."""
        with self._lock:
            paused = self.said["paused"] is not None
            return {"paused": paused, "removed": sorted(self.removed), "changed": _values(self.said["changes"], 2**62)}

    # -- somebody changes --------------------------------------------------------------------------------------------

    def take_run_file(self, before: RunConfig) -> dict[str, list[Any]]:
        """Take up what the run file says otherwise than at the last start, of KEYS; {key: [before, now]}.

        What was changed by an act stays, unless the run file has been changed in the same key since.

        Args:
            before: config.toml as the last start, or the last act, wrote it.
        """
        now, was = (_flat(config) for config in (self.config, before))
        found = {k: now[k] for k in KEYS if now[k] != self.said["run_file"].get(k, was[k])}
        return self._change(found, RUN_FILE, {**self.said["run_file"], **found}, was)

    def check(self, texts: Sequence[str]) -> dict[str, Any]:
        """The values by key of texts KEY=VALUE (as in TOML; without a value the key is left out).

        Raises ConfigError, in one line, as for a run file; nothing is changed.
        """
        values: dict[str, Any] = {}
        for text in texts:
            key, equals, _ = text.partition("=")
            if not equals or key.strip() not in KEYS:
                raise ConfigError(f"set {text!r:.80}: wanted KEY=VALUE with one of {', '.join(KEYS)}")
            table, name = key.strip().split(".")
            values[key.strip()] = run_file.load_options([text])[table][name] if text.partition("=")[2].strip() else None
        with self._lock:
            config = self._with({**_values(self.said["changes"], 2**62), **values})
            run_folder.check_plugins(config)
            self.fits(config)
            if (rounds := config.server.rounds) < (least := self.version + self.open):
                raise ConfigError(f"set server.rounds={rounds}: {least} are done or under way, wanted at least as many")
        return values

    def set(self, values: Mapping[str, Any], by: str) -> dict[str, list[Any]]:
        """Change these keys, as `check` gave them; {key: [before, now]} of those that differ. Durable at once."""
        with self._lock:
            was = _flat(self.latest())
            resolved = _flat(self._with({**_values(self.said["changes"], 2**62), **values}))
            news = {k: resolved[k] for k in values if resolved[k] != was[k]}
            kept = {k: v for k, v in _flat(self.config).items() if k in news}
            changed = self._change(news, by, {**kept, **self.said["run_file"]}, was)
            self.publish(self.latest())
            return changed

    def pause(self, by: str) -> None:
        """No round begins from now on; one that is open goes on to its end."""
        self._write(paused=self.said["paused"] or {"since": _now(), "by": by})

    def resume(self) -> None:
        """Rounds begin again."""
        self._write(paused=None)

    def remove(self, site: str, by: str) -> None:
        """Take a site out of this run: not waited for in the open round, and not asked again."""
        self._write(removed={**self.said["removed"], site: {"since": _now(), "by": by}})

    def take_back(self, site: str) -> None:
        """Let a site that was removed take part again, from the next round on."""
        self._write(removed={s: x for s, x in self.said["removed"].items() if s != site})

    def lift(self, site: str, by: str) -> int:
        """End a site's quarantine; the round from which it counts."""
        with self._lock:
            lifted = [x for x in self.said["lifted"] if x["round"] >= self.version]
            self._write(lifted=[*lifted, {"site": site, "round": self._next(), "time": _now(), "by": by}])
            return self._next()

    def _next(self) -> int:
        """The next round that begins."""
        return self.version + self.open

    def _change(
        self, values: Mapping[str, Any], by: str, of_file: Mapping[str, Any], was: Mapping[str, Any]
    ) -> dict[str, list[Any]]:
        """Add these changes, durably; `of_file`: what the run file says of keys that were ever changed."""
        with self._lock:
            news = [
                {
                    "key": key, "before": was[key], "value": value, "time": _now(), "by": by,
                    "round": self._next() if key.startswith("limits.") else self.version,
                }
                for key, value in values.items()
            ]  # fmt: skip
            if news or of_file != self.said["run_file"]:
                self._write(changes=[*self.said["changes"], *news], run_file=dict(of_file))
            return {x["key"]: [x["before"], x["value"]] for x in news}

    def _write(self, **news: Any) -> None:
        """Put the file on the disk with these of its keys anew, and only then let them hold. Raises RunPaused."""
        with self._lock:
            said = {**self.said, **news}
            durable.write(self.path, (json.dumps(said, indent=1, sort_keys=True) + "\n").encode(), mode=0o644)
            self.said, self._made = said, {}

    def _with(self, values: Mapping[str, Any]) -> RunConfig:
        """The run file with these values by key, None for left out. Raises ConfigError."""
        tables = self.config.to_dict()
        for key, value in values.items():
            table, name = key.split(".")
            tables[table] = {k: v for k, v in tables[table].items() if k != name}
            if value is not None:
                tables[table][name] = value
        return self.resolve(run_file.from_dict(tables, where="set"))


def _values(changes: Sequence[Mapping[str, Any]], round: int) -> dict[str, Any]:
    """The value of each key that was ever changed, as it holds in a round."""
    found: dict[str, Any] = {}
    for x in changes:
        found.setdefault(x["key"], x["before"])
        if x["round"] <= round:
            found[x["key"]] = x["value"]
    return found


def _flat(config: RunConfig) -> dict[str, Any]:
    """The value of each of KEYS, None for one that is left out."""
    tables = config.to_dict()
    return {key: tables[key.split(".")[0]].get(key.split(".")[1]) for key in KEYS}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
