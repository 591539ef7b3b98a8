"""/metrics: what Prometheus' own reader makes of it, and counters that never fall, whatever becomes of the server."""

import json
from pathlib import Path
from typing import Any

import pytest
import watched_runs
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fedft.board import live_file, metrics_text
from fedft.board.line_sums import MAX_CODES, OTHER, LineSums
from fedft.board.live_file import LiveFile
from fedft.board.run_status import RunReader
from fedft.reports.metric_log import MetricsFile

Sample = tuple[str, tuple[tuple[str, str], ...]]


def samples(text: str) -> dict[Sample, float]:
    """Value by name and labels, as Prometheus' reader finds them; what has neither HELP nor TYPE is an error."""
    found: dict[Sample, float] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        assert family.type in ("gauge", "counter"), family.name
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def of(folder: Path) -> dict[Sample, float]:
    """The samples of the run in a folder, read anew."""
    return samples(metrics_text.text({"run": RunReader(folder).status()}))


def ended(live: LiveFile, folder: Path) -> None:
    live("ended", {"folder": folder, "summary": None})


def test_the_reader_of_prometheus_finds_every_sample(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    live = LiveFile(folder)
    live("enrolling", {"clients": ["north"]})
    text = metrics_text.text({"run": (status := RunReader(folder).status())})
    ended(live, folder)
    found = samples(text)
    assert len(found) == len([line for line in text.splitlines() if not line.startswith("#")])
    run = (("run", "run"),)
    assert found["fedft_round", run] == 3
    assert found["fedft_bytes_up_total", run] == 305
    assert found["fedft_last_round_seconds", run] == 2.5
    assert found["fedft_memory_bytes", run] == status["memory_bytes"] > 1e7
    assert found["fedft_refused_total", (("code", "norm"), ("run", "run"))] == 1


def test_a_site_with_ever_new_words_makes_no_series_without_end(tmp_path: Path) -> None:
    """A site's own refusal has the code that it gives."""
    words = [f"{a}{b}" for a in "abcdefghij" for b in "abcdefghij"]
    lines = [
        {"version": n, "seconds": {}, "bytes_up": 0, "bytes_down": 0,
         "refused": [{"client": "north", "code": word, "reason": "no"}]}
        for n, word in enumerate([*words, "aa"])
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sums = LineSums(tmp_path / "metrics.jsonl")
    sums.read()
    assert len(sums.codes) == MAX_CODES + 1
    assert sums.codes.total() == len(lines)
    assert (sums.codes["aa"], sums.codes[OTHER]) == (2, len(words) - MAX_CODES)


@settings(max_examples=50, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_any_name_comes_back_as_it_was(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    status = RunReader(watched_runs.folder(tmp_path_factory.getbasetemp() / "named")).status()
    site = {**status["sites"][0], "name": name}
    found = samples(metrics_text.text({name: {**status, "sites": [site], "refused": {name: 2}}}))
    assert found["fedft_refused_total", (("code", name), ("run", name))] == 2
    assert found["fedft_site_counted_total", (("run", name), ("site", name))] == site["counted"]


def test_no_counter_falls_when_a_run_goes_on_from_an_earlier_state(tmp_path: Path) -> None:
    """Its newest states were damaged, twice: lines are cut off, and other sites take part when they are done again."""
    folder = watched_runs.folder(tmp_path / "run", versions=5)
    with open(folder / "metrics.jsonl", "a") as f:
        refused = [{"client": "west", "code": "late", "reason": "-"}]
        f.write(json.dumps(watched_runs.line(6, refused=refused, participants=["west"])) + "\n")
    seen = [of(folder)]
    for version in (4, 3):
        live = LiveFile(folder, version)
        seen.append(of(folder))
        metrics = MetricsFile(folder / "metrics.jsonl", version)
        assert RunReader(folder).status()["round"] == version
        seen.append(of(folder))
        for number in range(version + 1, version + 3):
            metrics.append(watched_runs.line(number, participants=["south"], bytes_up=90))
            seen.append(of(folder))
        ended(live, folder)
        seen.append(of(folder))
    counters = [key for key in seen[0] if key[0].endswith("_total")]
    assert {name for name, _ in counters} == {
        "fedft_bytes_up_total", "fedft_bytes_down_total", "fedft_round_seconds_total", "fedft_refused_total",
        "fedft_site_counted_total",
    }  # fmt: skip
    for key in counters:
        values = [found[key] for found in seen if key in found]
        assert values == sorted(values), key
        assert len(values) == len(seen) or ("site", "west") in key[1]  # nothing is left that tells of it
    assert seen[-1]["fedft_round", (("run", "run"),)] == 5


def test_a_restart_that_cuts_nothing_leaves_no_floor(tmp_path: Path) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    ended(LiveFile(folder, 3), folder)
    found = live_file.read(folder)
    assert found is not None
    assert found["floor"] is None


@pytest.mark.parametrize("floor", [3, [], {}, {"bytes_up": "x"}])
def test_a_floor_that_is_none_is_not_read(tmp_path: Path, floor: Any) -> None:
    folder = watched_runs.folder(tmp_path / "run")
    ended(LiveFile(folder), folder)
    facts = json.loads((folder / live_file.NAME).read_text())
    (folder / live_file.NAME).write_text(json.dumps({**facts, "floor": floor}))
    assert live_file.read(folder) is None
    assert of(folder)
