"""Secure sums between processes on loopback: the simulation's bytes, though a site and the server are killed."""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from processes import Deployment

from fedft import run_file
from fedft.client import app, site_file
from fedft.simulations import run as runs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PRESET = runs.QUICKSTART.with_name("secagg.toml")


@contextmanager
def attended(files: Sequence[Path]) -> Iterator[None]:
    """Serve sites in this process: they are only there to be five."""
    stop = threading.Event()
    thread = threading.Thread(target=app.attend_all, args=([*map(site_file.load, files)], stop), name="sites")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


NOISE = ["privacy.mode='central-dp'", "privacy.clip=0.1", "privacy.noise_multiplier=1.0", "privacy.delta=1e-3",
         "privacy.noise='seeded'"]  # fmt: skip


@pytest.mark.parametrize("noise", [[], NOISE], ids=["bare", "noisy"])
def test_a_deployment_ends_with_the_simulations_bytes_whoever_is_killed(
    tiny_base: Path, tmp_path: Path, noise: list[str]
) -> None:
    sets = [*noise, f"model.id='{tiny_base}'",
            "server.rounds=3", "server.quorum=1.0", "server.loggers=[]", "local.steps=4",
            "local.batch_size=2", "data.max_length=48", "eval.max_rows=2", "strategy.K=32"]  # fmt: skip
    simulated = runs.simulate(run_file.load(PRESET, sets), out=tmp_path / "simulated")
    with Deployment(tmp_path, PRESET, sets) as d:
        first, *others = d.rehearse()
        server, victim = d.server(), d.client(first)
        with attended([d.site(name) / "site.toml" for name in others]):
            server.wait_for("round 1: asking", 240)
            victim.kill()
            victim.start()
            server.wait_for("round 2: asking", 240)
            server.kill()
            server.start()
            assert server.ended(300) == 0, server.said()
    lines = [json.loads(line) for line in (d.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["state_digest"] for line in lines] == [line["state_digest"] for line in simulated.lines]
    assert all(set(line["weights"].values()) == {1} for line in lines[1:])
    assert all("evaluation" not in line or not line["evaluation"] for line in lines)
    enrolled = [json.loads(line) for line in (d.site(first) / "fedft-site" / "sent.jsonl").read_text().splitlines()]
    assert {"secagg", "train", "job"} == {line["kind"] for line in enrolled}
