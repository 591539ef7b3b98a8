"""OpenTelemetry of a run: spans for run, round, evaluation and letter, and the metrics of the board's `/metrics`.

    run                      this process's part of the run
      round                  whom the round asks, to the line of the state that it led to
        letter               one site's part, from when it is asked to its answer
        evaluation
          letter

No span holds anything of a row, or a site's own words: who, which round, how long, admitted or refused with which code.
Nothing is sent and nobody contacted unless OTEL_EXPORTER_OTLP_ENDPOINT names a collector, whatever a run file says;
the other variables of OpenTelemetry (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_HEADERS...) hold as its SDK says. Spans of
what a kill broke off are not sent. A collector that does not answer costs the run CLOSE_S at its end.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft.board import metrics_text
from fedft.board.run_status import RunReader
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.reports.observers import Observer

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Span, TracerProvider

log = logging.getLogger(__name__)

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
CLOSE_S = 10.0
FRESH_S = 1.0  # for which a status serves: an export asks for some twenty metrics one after another
LINE = ("loss", "train_loss", "bytes_up", "bytes_down")
"""Numbers of a line of metrics.jsonl that its round's span has."""


def otel(folder: Path, config: RunConfig) -> Observer:
    """Spans and metrics of the run for the collector that OTEL_EXPORTER_OTLP_ENDPOINT names; without it, nothing."""
    if not os.environ.get(ENDPOINT):
        log.warning("otel: %s is not set: nothing is sent", ENDPOINT)
        return lambda kind, info: None
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as e:
        raise ImportError(f"{e}; pip install 'fedft[otel]' brings it") from e
    named = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "fedft"}
    resource = Resource.create(named)
    spans = TracerProvider(resource=resource, shutdown_on_exit=False)
    spans.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    offer(meters, folder)
    tell = Spans(spans, folder, config)

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        tell(kind, info)
        if kind == "ended":
            _close(spans.shutdown, meters.shutdown)

    return observe


def _close(*ends: Any) -> None:
    """Send what is left; after CLOSE_S the run's end waits no longer."""
    threads = [threading.Thread(target=end, name="otel", daemon=True) for end in ends]
    for thread in threads:
        thread.start()
    until = time.monotonic() + CLOSE_S
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        log.warning("otel: the collector did not take all within %g s", CLOSE_S)


class Spans:
    """An observer that makes spans of a run's events."""

    def __init__(self, provider: "TracerProvider", folder: Path, config: RunConfig) -> None:
        """`provider`: takes the spans; the first begins now."""
        self._tracer = provider.get_tracer("fedft")
        self._facts: dict[str, Any] = {"fedft.folder": folder.resolve().name}
        facts = {"fedft.strategy": config.strategy.name, "fedft.rounds": config.server.rounds}
        self._run = self._begin("run", None, **facts)
        self._round: Span | None = None
        self._evaluation: Span | None = None
        self._letters: dict[str, Span] = {}
        self._outcomes: dict[str, str] = {}
        """Of letters that have not ended."""

    def __call__(self, kind: str, info: Mapping[str, Any]) -> None:
        """Take one event of the run, see `fedft.reports.observers`."""
        if kind == "enrolling" and info.get("run"):
            self._facts["fedft.run"] = info["run"]
            self._run.set_attribute("fedft.run", info["run"])
        elif kind == "round":
            self._over()
            self._round = self._begin("round", self._run, **{"fedft.round": info["round"]})
            self._round.set_attribute("fedft.asked", len(info["asked"]))
        elif kind == "asking":
            self._ask(info["clients"], self._round, {"fedft.round": info["round"]})
        elif kind == "evaluating":
            self._end_letters()
            facts = {"fedft.version": info["version"]}
            self._evaluation = self._begin("evaluation", self._round or self._run, **facts)
            self._ask(info["asked"], self._evaluation, facts)
        elif kind in ("admitted", "measured"):
            self._outcomes[info["client"]] = kind
            if info.get("timed", True):  # else the letter ends with its round, which tells of nobody alone
                self._answer(info["client"])
        elif kind == "refused":
            self._refuse(info)
        elif kind == "line":
            self._line(info)
        elif kind == "ended":
            self._over()
            self._run.set_attribute("fedft.finished", info["summary"] is not None)
            self._run.end()

    def _begin(self, name: str, parent: "Span | None", **facts: Any) -> "Span":
        from opentelemetry import trace

        context = None if parent is None else trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context, attributes={**self._facts, **facts})

    def _ask(self, clients: Iterable[str], parent: "Span | None", facts: Mapping[str, Any]) -> None:
        """A letter to each; one that was not answered before ends, since its site is asked again."""
        for client in clients:
            self._answer(client)
            self._letters[client] = self._begin("letter", parent or self._run, **{**facts, "fedft.site": client})

    def _answer(self, client: str) -> None:
        outcome = self._outcomes.pop(client, "unanswered")
        if (letter := self._letters.pop(client, None)) is not None:
            letter.set_attribute("fedft.outcome", outcome)
            letter.end()

    def _refuse(self, info: Mapping[str, Any]) -> None:
        """A letter whose answer is refused ends with the code; what anybody may have sent ends none."""
        if (letter := self._letters.get(info["client"])) is None:
            return
        letter.add_event("refused", {"fedft.code": info["code"]})
        if info.get("proven"):
            letter.set_attribute("fedft.code", info["code"])
            self._outcomes[info["client"]] = "refused"
            self._answer(info["client"])

    def _line(self, info: Mapping[str, Any]) -> None:
        """The end of a round, or of the first evaluation, with the numbers of its line."""
        span = self._round or self._evaluation
        if span is not None:
            numbers = {f"fedft.{name}": info[name] for name in LINE if isinstance(info.get(name), int | float)}
            span.set_attributes({**numbers, "fedft.refused": len(info["refused"])})
            span.set_attribute("fedft.counted", len(info.get("participants", ())))
        self._over()

    def _end_letters(self) -> None:
        for client in list(self._letters):
            self._answer(client)

    def _over(self) -> None:
        """What has begun in a round, or is a round, ends."""
        self._end_letters()
        for span in (self._evaluation, self._round):
            if span is not None:
                span.end()
        self._round = self._evaluation = None


def offer(provider: "MeterProvider", folder: Path) -> None:
    """Let `provider` have every metric of `/metrics`, under the same names, of the run in `folder`, when it asks."""
    meter, found = provider.get_meter("fedft"), _Found(folder)
    for name, kind, told, _ in metrics_text.families({}):
        make = meter.create_observable_counter if kind == "counter" else meter.create_observable_gauge
        make(name, [partial(found.of, name)], description=told)


class _Found:
    """The samples of a run's metrics, read anew when they are older than FRESH_S."""

    def __init__(self, folder: Path) -> None:
        self._reader, self._name = RunReader(folder), folder.resolve().name
        self._lock, self._at = threading.Lock(), -FRESH_S
        self._samples: dict[str, list[tuple[Mapping[str, Any], Any]]] = {}

    def of(self, name: str, options: "CallbackOptions") -> "Iterable[Observation]":
        """What is known of one metric."""
        from opentelemetry.metrics import Observation

        with self._lock:
            if time.monotonic() >= self._at + FRESH_S:
                self._at = time.monotonic()
                try:
                    families = metrics_text.families({self._name: self._reader.status()})
                    self._samples = {family: list(samples) for family, _, _, samples in families}
                except ConfigError:
                    self._samples = {}  # the folder has no run yet
            found = self._samples.get(name, [])
        return [Observation(value, dict(labels)) for labels, value in found if value is not None]
