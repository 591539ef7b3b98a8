"""OpenTelemetry: spans that tell of a run and of nobody's rows, metrics that are those of /metrics, and silence."""

import http.server
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import watched_runs
from deployed import Deployment, Direct, Site
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from fedft.board import metrics_text
from fedft.board.run_status import RunReader
from fedft.config import RunConfig
from fedft.reports.loggers import otel
from fedft.suites.loggers import logger_contract

TOLD = {
    "run", "folder", "strategy", "rounds", "round", "asked", "version", "site", "outcome", "code", "refused", "counted",
    "finished", *otel.LINE,
}  # fmt: skip


@pytest.fixture
def kept() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def spans(kept: InMemorySpanExporter, tmp_path: Path) -> otel.Spans:
    """An observer whose spans are kept in memory."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return otel.Spans(provider, tmp_path, RunConfig())


def fact(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(f"fedft.{name}")


class WithoutCarl(Direct):
    """A network that does not reach one of the sites."""

    def nodes(self) -> Any:
        """All but carl."""
        return {name: node for name, node in super().nodes().items() if name != "carl"}


def test_the_spans_of_a_run_lie_in_each_other_and_tell_nothing_else(
    spans: otel.Spans, kept: InMemorySpanExporter, tmp_path: Path
) -> None:
    plain = Deployment(tmp_path / "plain")
    sites = {s: Site(s, i, tmp_path / "sites" / s, plain.config) for i, s in enumerate(plain.names)}
    house = Deployment(tmp_path / "run", sites=sites, link=WithoutCarl(sites), quorum=0.6, grace_s=0.0, deadline_s=30.0)
    house.federation.observe = house.post.observe = spans
    house.run()
    spans("ended", {"folder": tmp_path, "summary": {}})
    found = kept.get_finished_spans()
    by_id = {s.context.span_id: s for s in found}
    (run,) = [s for s in found if s.name == "run"]
    assert (run.parent, fact(run, "finished"), fact(run, "run")) == (None, True, house.federation.job.run)
    rounds = [s for s in found if s.name == "round"]
    assert [fact(s, "round") for s in rounds] == [0, 1, 2, 3]
    assert all(s.parent and s.parent.span_id == run.context.span_id for s in rounds)
    assert [fact(s, "counted") for s in rounds] == [2] * 4
    letters = [s for s in found if s.name == "letter"]
    parents = Counter(by_id[s.parent.span_id].name for s in letters if s.parent)
    assert parents == {"round": 12, "evaluation": 10}  # carl never came, and has no held-out rows as far as is known
    trained = [s for s in letters if fact(s, "version") is None]
    assert Counter((fact(s, "site"), fact(s, "outcome")) for s in trained) == {
        ("anna", "admitted"): 4, ("bert", "admitted"): 4, ("carl", "unanswered"): 4
    }  # fmt: skip
    for s in found:
        assert {name.removeprefix("fedft.") for name in s.attributes or {}} <= TOLD
        assert all(isinstance(x, int | float) or len(str(x)) < 60 for x in (s.attributes or {}).values())
        if s.parent:
            above = by_id[s.parent.span_id]
            assert (above.start_time or 0) <= (s.start_time or 0) <= (s.end_time or 0) <= (above.end_time or 0)
            assert s.context.trace_id == run.context.trace_id


def test_who_is_refused_or_asked_again_has_a_letter_for_each_time(
    spans: otel.Spans, kept: InMemorySpanExporter, tmp_path: Path
) -> None:
    spans("round", {"round": 3, "asked": ["a", "b"]})
    spans("asking", {"round": 3, "clients": ["a", "b"]})
    said = {"code": "norm", "reason": "of row 7: secret", "size": 1, "sha256": ""}
    spans("refused", {"client": "b", **said, "proven": False})  # anybody may have sent it
    spans("refused", {"client": "nobody", **said, "proven": True})
    assert not kept.get_finished_spans()
    spans("refused", {"client": "b", **said, "proven": True})
    spans("asking", {"round": 3, "clients": ["a", "b"]})
    spans("admitted", {"round": 3, "client": "b", "metrics": {}})
    spans("ended", {"folder": tmp_path, "summary": None})
    found = [(s.name, fact(s, "site"), fact(s, "outcome"), fact(s, "code")) for s in kept.get_finished_spans()]
    assert found == [
        ("letter", "b", "refused", "norm"), ("letter", "a", "unanswered", None), ("letter", "b", "admitted", None),
        ("letter", "a", "unanswered", None), ("round", None, None, None), ("run", None, None, None),
    ]  # fmt: skip
    assert "secret" not in "".join(s.to_json() for s in kept.get_finished_spans())
    assert fact(kept.get_finished_spans()[-1], "finished") is False


def test_a_letter_whose_time_is_not_to_be_told_ends_with_its_round(
    spans: otel.Spans, kept: InMemorySpanExporter, tmp_path: Path
) -> None:
    spans("round", {"round": 3, "asked": ["a", "b"]})
    spans("asking", {"round": 3, "clients": ["a", "b"]})
    spans("admitted", {"round": 3, "client": "a", "metrics": {}, "timed": False})
    assert not kept.get_finished_spans()
    spans("ended", {"folder": tmp_path, "summary": None})
    found = [(s.name, fact(s, "site"), fact(s, "outcome")) for s in kept.get_finished_spans()]
    assert found[:2] == [("letter", "a", "admitted"), ("letter", "b", "unanswered")]


def test_the_metrics_are_those_of_the_board(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    otel.offer(provider, folder)
    data = reader.get_metrics_data()
    assert data is not None
    found: dict[Any, Any] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        assert metric.description
        for point in metric.data.data_points:
            found[metric.name, frozenset((point.attributes or {}).items())] = point.value  # type: ignore[union-attr]
    text = metrics_text.text({"run": RunReader(folder).status()})
    board = {
        (s.name, frozenset(s.labels.items())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    changing = "fedft_disk_free_bytes"
    assert len(board) > 20
    assert {k: v for k, v in found.items() if k[0] != changing} == {k: v for k, v in board.items() if k[0] != changing}
    for path in folder.iterdir():
        path.unlink()
    time.sleep(otel.FRESH_S)
    reader.get_metrics_data()  # a folder that is no run any more is no error
    provider.shutdown()


def test_without_an_endpoint_nothing_is_loaded_or_contacted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.delenv(otel.ENDPOINT, raising=False)
    logger_contract(otel.otel)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is not set: nothing is sent" in caplog.text
    code = """
import socket, sys
from pathlib import Path
socket.socket = None
from fedft.config import RunConfig
from fedft.reports.loggers import otel
observe = otel.otel(Path(sys.argv[1]), RunConfig())
observe("line", {"version": 0, "refused": []})
observe("ended", {"folder": None, "summary": None})
assert not [m for m in sys.modules if m.startswith("opentelemetry")]
"""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL")}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60, env=clean)


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The address of a collector, and what it was sent."""
    taken: list[tuple[str, bytes]] = []

    class Take(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_collector_is_sent_the_spans_and_the_metrics(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    monkeypatch.setenv("NO_PROXY", "*")
    with collector() as (address, taken):
        monkeypatch.setenv(otel.ENDPOINT, address)
        observe = otel.otel(folder, RunConfig())
        observe("round", {"round": 3, "asked": ["north"]})
        observe("asking", {"round": 3, "clients": ["north"]})
        observe("ended", {"folder": folder, "summary": None})
    sent = dict(taken)
    assert set(sent) == {"/v1/traces", "/v1/metrics"}
    assert b"letter" in sent["/v1/traces"]
    assert b"north" in sent["/v1/traces"]
    assert b"fedft_bytes_up_total" in sent["/v1/metrics"]


def test_a_collector_that_is_not_there_keeps_the_end_of_a_run_no_longer_than_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(otel, "CLOSE_S", 0.2)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv(otel.ENDPOINT, "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with caplog.at_level(logging.WARNING):
        observe = otel.otel(watched_runs.folder(tmp_path / "run"), RunConfig())
        began = time.monotonic()
        observe("ended", {"folder": tmp_path, "summary": None})
    assert time.monotonic() - began < 5
    for thread in threading.enumerate():
        if thread.name == "otel":
            thread.join(30)
