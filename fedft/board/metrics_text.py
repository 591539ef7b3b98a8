"""Statuses (`run_status`) in Prometheus' text form, version 0.0.4: what `/metrics` answers.

Every sample has the label `run`. Counters never fall, whatever becomes of the server: they count the lines of
metrics.jsonl, and stand still where some were cut off (`counters`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fedft.board import counters
from fedft.board.run_status import SITE_STATES, shown_state

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_SITES = 1000  # with series of their own; above it only counts, which is said in fedft_sites_left_out
STATES = ("running", "paused", "finished", "stopped", "silent")

PLAIN = (
    ("fedft_round", "gauge", "Version of the newest state, which is how many rounds are done.", "round"),
    ("fedft_rounds", "gauge", "How many rounds there are to be.", "rounds"),
    ("fedft_loss", "gauge", "Loss on held-out rows, mean over clients.", "loss"),
    ("fedft_train_loss", "gauge", "Loss while training in the last round, weighted by examples.", "train_loss"),
    ("fedft_epsilon", "gauge", "What was spent of privacy so far.", "epsilon"),
    ("fedft_bytes_up_total", "counter", "Bytes from all clients.", "bytes_up"),
    ("fedft_bytes_down_total", "counter", "Bytes to all clients.", "bytes_down"),
    ("fedft_round_seconds_total", "counter", "Seconds of all rounds.", "seconds"),
    ("fedft_last_round_seconds", "gauge", "Seconds of the newest round.", "round_s"),
    ("fedft_left_seconds", "gauge", "About how long the rounds that are left will take.", "left_s"),
    ("fedft_deadline_timestamp_seconds", "gauge", "When the exchange under way ends.", "deadline"),
    ("fedft_heard_timestamp_seconds", "gauge", "When the run last said something.", "updated"),
    ("fedft_disk_bytes", "gauge", "Bytes of the run folder.", "disk_bytes"),
    ("fedft_disk_free_bytes", "gauge", "Bytes that its disk has left.", "disk_free"),
    ("fedft_memory_bytes", "gauge", "Main memory of the run's process.", "memory_bytes"),
)
OF_SITES = (
    ("fedft_site_loss", "gauge", "Loss on a site's held-out rows.", "loss"),
    ("fedft_site_counted_total", "counter", "Rounds in which a site's update counted.", "counted"),
    ("fedft_site_answer_seconds", "gauge", "Seconds that a site takes to answer, mean of its last.", "took_s"),
)
"""(name, type, help, key of the status, or of a site in it); a value that is not known has no sample."""

Samples = Iterable[tuple[Mapping[str, Any], Any]]
"""(labels, value) of a metric's samples; a value of None is left out."""


Family = tuple[str, str, str, Samples]
"""Name, type, help and samples of a metric."""


def text(statuses: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics of these runs by their name, as text with a line end behind every line."""
    return "".join(_metric(*family) for family in families(statuses))


def families(statuses: Mapping[str, Mapping[str, Any]]) -> Iterator[Family]:
    """Every metric there is, with its samples of these runs by their name."""
    runs = [({"run": name}, _raised(s)) for name, s in statuses.items()]
    for name, kind, told, key in PLAIN:
        yield name, kind, told, [(run, s[key]) for run, s in runs]
    states = [({**run, "state": x}, int(shown_state(s) == x)) for run, s in runs for x in STATES]
    yield "fedft_state", "gauge", "1 for the state that the run is in.", states
    counts = [(run, Counter(site["state"] for site in s["sites"])) for run, s in runs]
    sites = [({**run, "state": x}, found[x]) for run, found in counts for x in dict.fromkeys((*SITE_STATES, *found))]
    yield "fedft_sites", "gauge", "Sites in each state.", sites
    refused = [({**run, "code": code}, n) for run, s in runs for code, n in s["refused"].items()]
    yield "fedft_refused_total", "counter", "What was refused, by code.", refused
    left_out = [(run, max(0, len(s["sites"]) - MAX_SITES)) for run, s in runs]
    yield "fedft_sites_left_out", "gauge", "Sites without series of their own.", left_out
    for name, kind, told, key in OF_SITES:
        each = [({**run, "site": x["name"]}, x[key]) for run, s in runs for x in s["sites"][:MAX_SITES]]
        yield name, kind, told, each


def _raised(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """A status whose counters are nowhere below its floor."""
    if status["floor"] is None:
        return status
    counted = {site["name"]: site["counted"] for site in status["sites"]}
    found = counters.most(
        status["floor"], {**{k: status[k] for k in counters.NONE if k != "counted"}, "counted": counted}
    )
    sites = [{**site, "counted": found["counted"][site["name"]]} for site in status["sites"]]
    return {**status, **found, "sites": sites}


def _metric(name: str, kind: str, told: str, samples: Samples) -> str:
    """The lines of one metric; "" where it has no sample."""
    lines = [f"{name}{{{_labels(labels)}}} {value}\n" for labels, value in samples if value is not None]
    return f"# HELP {name} {told}\n# TYPE {name} {kind}\n{''.join(lines)}" if lines else ""


def _labels(labels: Mapping[str, Any]) -> str:
    return ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
