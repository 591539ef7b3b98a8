"""What hostile peers, models and disks can do today: each script of this folder at its smallest setting, on loopback.

What is not as it should be yet is listed by name, and the lists only shrink: what is mended must be taken off.
"""

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import warm_processes
from processes import Deployment, command_of

from fedft import run_file
from fedft.simulations import run as runs

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
ROOT = HERE.parents[1]

# A client whose own file is lost begins anew, and the run says so and comes to another state than the simulation.
CHANGES_THE_RUN = {
    f"sites/{site}/kept/kept-1.fedft {how}"
    for site in ("anna", "bert", "carl")
    for how in ("flip", "truncate", "empty", "delete")
}


def attack(script: str, *options: object, tmp: Path, seconds: float = 240) -> list[dict[str, Any]]:
    """The JSON lines that a script prints."""
    env = {**os.environ, "TMPDIR": str(tmp), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "support"), *filter(None, [env.get("PYTHONPATH")])])
    done = warm_processes.run([str(HERE / script), *map(str, options)], env=env, timeout=seconds)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{") and line.endswith("}")]


def test_whatever_the_bytes_decoders_answer_with_a_value_or_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDFT_KERNELS", "torch")  # a compiler, which is read once, takes 105 MiB however much there is
    out = tmp_path / "out.json"
    attack("fuzz_codecs.py", "--minutes", 0.1, "--json", out, tmp=tmp_path)
    found = json.loads(out.read_text())
    assert found["inputs"] > 100
    assert not found["bad"], found["bad"][0]
    assert found["rss_growth_mib"] < 64


@pytest.mark.parametrize("codec", ["topk:1|bf16", "int4", "ternary", "fp32"])
def test_a_plan_makes_a_site_allocate_no_more_than_its_size(codec: str, tmp_path: Path) -> None:
    """A MiB, or two copies of the plan: it is refused by what its table says."""
    (said,) = attack("plan_bomb.py", "--codec", codec, tmp=tmp_path)
    assert said["outcome"].startswith("refused spec_mismatch"), said
    assert said["peak_mib"] - said["rss_before_mib"] <= 2 + 2 * said["sent_bytes"] / 2**20, said


@pytest.mark.parametrize(("codec", "most"), [("topk:1|bf16", 64), ("int4", 4096)])
def test_what_decoding_alone_allocates_is_bounded_by_the_message(codec: str, most: int, tmp_path: Path) -> None:
    """A byte claims at most 256 entries; dense codecs make float32 of them, 1024 bytes, and work on copies."""
    (said,) = attack("plan_bomb.py", "--codec", codec, "--bare", tmp=tmp_path)
    assert said["amplification"] <= most, said


def test_no_code_of_a_model_folder_runs(tiny_base: Path, tmp_path: Path) -> None:
    said = attack("evil_model.py", tiny_base, tmp=tmp_path)
    assert len(said) == 12
    assert not [x["case"] for x in said if x["code_ran"]]
    assert not [x["case"] for x in said if x["outcome"].startswith("UNCAUGHT")]


def test_nobody_is_asked_whether_to_run_code_of_a_model_folder(tiny_base: Path, tmp_path: Path) -> None:
    said = attack("evil_model.py", tiny_base, "--tty", tmp=tmp_path)
    assert not [x["case"] for x in said if x["asked"] or x["code_ran"]]


def test_a_run_with_damaged_files_comes_to_the_state_of_its_simulation_or_refuses(tmp_path: Path) -> None:
    (said,) = attack("state_faults.py", tmp=tmp_path, seconds=500)
    assert said["fedit undisturbed"] == said["scaffold undisturbed"] == "equal"
    found = said["scaffold damaged"]
    assert not found["crash"]
    assert found["equal"] + found["refused"] >= 50
    assert not found["WRONG"]
    assert set(found["told"]) == CHANGES_THE_RUN


def test_a_round_s_bytes_travel_over_every_carrier_measured(tmp_path: Path) -> None:
    said = attack("carriers.py", "--mib", 1, "--repeat", 1, tmp=tmp_path)
    assert [x["mode"] for x in said] == ["tls", "grpc", "http", "ours"]
    assert all(x["s_min"] > 0 for x in said)


@pytest.fixture
def attacked(tiny_base: Path, tmp_path: Path) -> Iterator[tuple[Deployment, int]]:
    """A server that waits for its sites, and the process that answers at its port."""
    tables = ["local.steps=2", "server.rounds=1", "data.clients=2", "eval.max_rows=4", "clients.rank=2"]
    with Deployment(tmp_path / "d", runs.QUICKSTART, [f"model.id='{tiny_base}'", "strategy.name=fedit", *tables]) as d:
        d.folder.mkdir()
        d.rehearse()
        server = d.server()
        server.wait_for("listening on", 120)
        yield d, _listening(server, d.port)


def _listening(server: Any, port: int) -> int:
    """The process among a server's that listens on a port of loopback."""
    for pid in [server.pid, *server.children()]:
        if port in _ports(pid):
            return pid
    raise AssertionError(f"nothing listens on {port}; {[command_of(p) for p in server.children()]}\n{server.said()}")


def _ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on."""
    try:
        held = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir()}
        rows = [x.split() for x in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return set()
    return {int(x[1].split(":")[1], 16) for x in rows if x[3] == "0A" and f"socket:[{x[9]}]" in held}


def test_strangers_at_the_port_get_nothing_and_cost_little(attacked: tuple[Deployment, int], tmp_path: Path) -> None:
    d, pid = attacked
    key = d.site("asyncio") / "keys" / "node.key"
    options = ("--port", d.port, "--ca", d.keys / "ca.pem", "--pid", pid, "--node-key", key)
    small = ("--hold", 3, "--conns", 1500, "--requests", 160, "--mib", 4)
    *said, end = attack("attack_port.py", *options, *small, tmp=tmp_path)
    by = {x["attack"]: x for x in said}
    assert list(by) == ["odd", "flood", "unread", "unasked", "loris", "raw", "again"]
    welcome = {name for name, x in by["odd"]["did"].items() if "WELCOME" in x or x == "ACCEPTED"}
    assert not {name for name in welcome if not name.startswith("enrolled: ")}, "a stranger is let in"
    assert by["odd"]["did"]["a stranger's: hello"] == "REFUSE unknown"
    assert by["again"]["did"]["came"] > 1500, "nobody was thrown out"
    seen = {x["attack"]: [*x["probe_answers"], x["worst_probe"]["s"]] for x in said}
    assert all(x["probe_answers"] == ["known"] for x in said), f"an honest site was turned away: {seen}"
    assert end["end_probe"]["answer"] == "known"
    assert max(x["rss_peak"] for x in said) - by["odd"]["rss_before"] < 64


def test_floods_above_and_below_tls_leave_an_honest_site_its_rounds(tmp_path: Path) -> None:
    """Figures of a fraction of a second; what the floods are is counted by `tests/carriers/stream/test_limits.py`."""
    said = attack("stream_floods.py", "--seconds", 0.4, "--processes", 1, tmp=tmp_path)
    by = {x["attack"]: x for x in said}
    assert len(by) == 13
    assert all(sum(x["did"].values()) for name, x in by.items() if name != "nobody"), "nobody attacked"
    assert all(x["rounds_per_s"] > 0 for x in said)
    assert max(x["mib"][1] for x in said) - by["nobody"]["mib"][0] < 64


def test_a_site_that_answers_with_noise_is_refused_before_it_has_sent_it(
    attacked: tuple[Deployment, int], tmp_path: Path
) -> None:
    d, pid = attacked
    site = d.site("asyncio")
    *_, last = attack("fat_site.py", site, f"127.0.0.1:{d.port}", pid, "--mib", 64, "--seconds", 10, tmp=tmp_path)
    assert last["sent_mib"] == 64, "the site was never asked"
    assert last["peak"] - last["mib_before"] < 32


def test_a_run_comes_to_its_simulation_s_bytes_while_strangers_come_again_and_again(
    tiny_base: Path, tmp_path: Path
) -> None:
    """1,100 silent ones at once, from the sites' own address, back as soon as they are thrown out."""
    small = ["local.steps=2", "server.rounds=6", "data.clients=4", "eval.max_rows=4", "clients.rank=2"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=fedit", *small]
    (tmp_path / "d").mkdir()
    with Deployment(tmp_path / "d", runs.QUICKSTART, sets) as d, ThreadPoolExecutor(1) as pool:
        names = d.rehearse()
        server = d.server()
        server.wait_for("listening on", 120)
        key = d.site(names[0]) / "keys" / "node.key"
        where = ("--port", d.port, "--ca", d.keys / "ca.pem", "--pid", server.pid, "--node-key", key)
        attacked = pool.submit(attack, "attack_port.py", *where, "--only", "again", "--hold", 60, tmp=tmp_path)
        time.sleep(5)  # for all of them to be there
        for name in names:
            d.client(name)
        code = server.ended(300)
        again, *_ = attacked.result()
    assert code == 0
    assert again["did"]["came"] > 1100
    simulated = runs.simulate(run_file.load(runs.QUICKSTART, sets), out=tmp_path / "simulated")
    summary = json.loads((d.out / "summary.json").read_text())
    assert summary["state_digest"] == simulated.summary["state_digest"]
    assert summary["refused"] == simulated.summary["refused"]
