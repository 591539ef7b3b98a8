"""Which path of a request is answered with what. No sockets here: `listener` speaks HTTP.

/               the page, of the run or of the folder of runs; with ?run=NAME of a run in it
/status.json    the same as JSON, see `run_status` and `run_folders`
/metrics        all of it in Prometheus' text form
/adapter.zip    model/ of the run, once there is one
/healthz        "ok": this process answers         /readyz: whether the run can be read and is not silent
"""

import json
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedft.board import adapter_zip, metrics_text, page
from fedft.board.run_folders import FolderReader
from fedft.errors import ConfigError

FRESH_S = 0.5  # for which a status is given again: many who look cost no more than one
OPEN = ("/healthz", "/readyz")
"""Paths that tell nothing of the run, and need no token."""
POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """What a request is answered with."""

    code: int
    kind: str
    """The Content-Type."""
    body: Iterable[bytes]
    headers: dict[str, str] = field(default_factory=dict)


class Pages:
    """The answers about one folder. Any thread may ask."""

    def __init__(self, folder: Path, token: str = "") -> None:
        """`folder`: of a run, or of runs; there need not be one yet. `token`: that links carry; "" for none."""
        self.folder, self.token = folder, token
        self._reader = FolderReader(folder)
        self._lock = threading.Lock()
        self._kept: dict[str, tuple[float, dict[str, Any]]] = {}

    def answer(self, path: str, run: str = "") -> Answer:
        """The answer to a GET of `path`; `run` is the request's run=NAME."""
        found = {
            "/": self._page, "/status.json": self._json, "/metrics": self._metrics, "/adapter.zip": self._adapter,
            "/readyz": self._ready,
        }.get(path)  # fmt: skip
        if path == "/healthz":
            return _text(200, "ok")
        return found(run) if found else _text(404, "no such page; there are /, /status.json, /metrics, /adapter.zip")

    def status(self, run: str = "") -> dict[str, Any]:
        """The status of the folder, or of a run in it, at most FRESH_S old. Raises ConfigError as `FolderReader`."""
        with self._lock:
            kept = self._kept.get(run)
            if kept is None or time.monotonic() >= kept[0] + FRESH_S:
                kept = time.monotonic(), self._reader.status(run)
                self._kept[run] = kept
            return kept[1]

    def _page(self, run: str) -> Answer:
        nonce = secrets.token_urlsafe(16)
        try:
            text = page.page(self.status(run), nonce, self.token, run)
        except ConfigError:
            if run:
                return _text(404, "no such run, or none that can be read")
            text = page.message(self.folder.resolve().name, "no run here yet", nonce)
        policy = {"Content-Security-Policy": POLICY.format(nonce=nonce)}
        return Answer(200, "text/html; charset=utf-8", [_bytes(text)], policy)

    def _json(self, run: str) -> Answer:
        try:
            return Answer(200, "application/json", [_bytes(json.dumps(self.status(run), allow_nan=False))])
        except ConfigError:
            return Answer(404, "application/json", [b'{"error": "no such run"}'])

    def _metrics(self, run: str) -> Answer:
        try:
            found = self.status(run)
            if "runs" in found:
                of = {r["name"]: s for r in found["runs"] if (s := self._status_or_none(r["name"]))}
            else:
                of = {run or found["name"]: found}
        except ConfigError:
            of = {}
        return Answer(200, metrics_text.CONTENT_TYPE, [_bytes(metrics_text.text(of))])

    def _status_or_none(self, run: str) -> dict[str, Any] | None:
        """The status of a run of a folder; None for a race's baseline, which left a result only."""
        try:
            return self.status(run)
        except ConfigError:
            return None

    def _adapter(self, run: str) -> Answer:
        with self._lock:
            model = self._reader.adapter(run)
        if model is None:
            return _text(404, "there is no adapter yet: a run writes model/ when it ends")
        headers = {"Content-Disposition": 'attachment; filename="adapter.zip"'}
        return Answer(200, "application/zip", adapter_zip.chunks(model), headers)

    def _ready(self, run: str) -> Answer:
        try:
            silent = self.status().get("state") == "silent"
        except ConfigError:
            return _text(503, "there is no run yet")
        return _text(503, "the run is silent") if silent else _text(200, "ok")


def _text(code: int, said: str) -> Answer:
    return Answer(code, TEXT, [_bytes(said + "\n")])


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "replace")
