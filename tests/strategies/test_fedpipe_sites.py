"""FedPipe over a network: three real site processes that allow unlike memory are asked for unlike work, within it."""

import json
import re
from pathlib import Path

import pytest
from processes import Deployment

MOST = {"email": 379, "logging": 386}
"""MiB that [policy] max_memory_mib of a site allows; the third says nothing. A probe of 16 rows at once is foreseen to
take 397, of 8 385.1, of 4 378.9, of one or two 378.5, which is what an evaluation takes.
"""
RUN = """
[model]
id = "{base}"
[data]
train = "stdlib-docstrings"
clients = 3
max_length = 96
[strategy]
name = "fedpipe"
[local]
steps = 2
batch_size = 16
[clients]
rank = 16
[server]
rounds = 3
deadline_s = 120
[eval]
every = 3
max_rows = 2
exactness = false
"""


@pytest.mark.slow
def test_each_site_is_asked_for_what_its_own_policy_allows(tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN.format(base=tiny_base))
    with Deployment(tmp_path, tmp_path / "run.toml") as d:
        sites = d.rehearse()
        assert {*MOST} < {*sites}
        for name, most in MOST.items():
            file = d.site(name) / "site.toml"
            text = file.read_text()
            assert text.count("[policy]\n") == 1
            file.write_text(text.replace("[policy]\n", f"[policy]\nmax_memory_mib = {most}\n"))
        server = d.server()
        for name in sites:
            d.client(name)
        assert server.ended(240) == 0, server.said()
    lines = [json.loads(line) for line in (d.out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert not [r for line in lines for r in line["refused"]], "somebody was asked for more than it allows"
    probes = {name: lines[1]["plans"][name] for name in sites}
    assert not any("batch" in p for p in probes.values()), "a batch in pieces is the run's own batch"
    pieces = {name: p["extra"].get("rows_at_once") for name, p in probes.items()}
    assert 1 <= pieces["email"] <= 4, pieces  # one who was not heard of in time may have any limit, too
    assert 1 <= pieces["logging"] <= 8, pieces
    assert pieces[next(name for name in sites if name not in MOST)] == 1, "who says nothing may have any limit"
    assert all(lines[1]["bytes"][name]["up"] for name in sites), "all answered the probe"
    batches = {name: lines[-1]["plans"][name].get("batch") or 16 for name in sites}
    free = next(name for name in sites if name not in MOST)
    assert batches["email"] < batches["logging"] <= batches[free], batches  # its probe, row by row, took longest
    assert re.search(r"finished|done", server.said())
