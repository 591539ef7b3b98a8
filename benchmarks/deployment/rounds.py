"""Seconds per round of a deployment whose sites train nothing: what the engine adds to the time of the bytes.

    python benchmarks/deployment/rounds.py --mib 1 --mib 50 --mib 200 --sites 2 --rounds 5 --json rounds.json

A server and the sites run on this machine as they do in earnest: TLS, sealed letters, journal, commit.
The state is one float32 tensor and a local step returns a ready change at once (`idle_deployment.py`). The same bytes
through bare TLS sockets and the same files written durably (`bare_bytes.py`) are measured in the same run, before and
after, and subtracted.

    down       until the last site has the plan          aggregate  journal read back, mean, new state
    site       plan taken up, answer made durable        commit     the new state made durable
    up         until the last answer is in the journal   rest       digests, metrics, the next round's beginning
    fsync      of all that, the server's waits for the disk

Bytes on loopback are what the kernel counts of the whole machine; in a namespace of its own (`own_loopback.py`) they
are this script's alone, headers of TCP and TLS included.

Sites are processes of their own, or with --together threads of one (many of them fit into memory then).
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

PATIENCE_S = 900.0
PROCESSES = Path(__file__).with_name("idle_deployment.py")


def measure(mib: int, sites: int, rounds: int, together: bool) -> dict[str, Any]:
    """All figures of one size of the state."""
    from bare_bytes import seconds_through_tls, seconds_to_disk

    folder = Path(mkdtemp(prefix="fedft-rounds-"))
    names = [f"site{i:03d}" for i in range(sites)]
    tls, disk = [], []

    def without_engine() -> None:
        for _ in range(3):
            tls.append(seconds_through_tls(folder / "keys", mib, sites))
            disk.append(seconds_to_disk(folder, mib, sites))

    try:
        make_keys(folder, names)
        without_engine()
        found = deployed(folder, names, mib, rounds, together)
        without_engine()
    finally:
        rmtree(folder, ignore_errors=True)
    tls_s, disk_s = statistics.median(tls), statistics.median(disk)
    beyond_s = found["round_s"]["median"] - tls_s - disk_s
    return found | {"mib": mib, "sites": sites, "tls_s": tls_s, "disk_s": disk_s, "beyond_s": beyond_s}


def make_keys(folder: Path, names: list[str]) -> None:
    """Write the keys of the server and of these sites, and the roster."""
    from fedft.security import new_keys
    from fedft.security import roster as keys

    new_keys.make_server(folder / "keys", ["localhost", "127.0.0.1"])
    for name in names:
        keys.enrol(folder / "keys" / "roster.toml", new_keys.make_site(folder / "sites" / name, name))


def deployed(folder: Path, names: list[str], mib: int, rounds: int, together: bool) -> dict[str, Any]:
    """Figures of a run of one round more than asked for: the first one has the enrolment in it and is left out."""
    import round_notes

    said: dict[str, Any] = {"mib": mib, "rounds": rounds + 1}
    (folder / "said.json").write_text(json.dumps(said))
    notes = folder / "server.jsonl"
    with ending(folder) as start:
        server = start("serve")
        while not (found := round_notes.read(notes)):
            _still_well(server, folder)
            time.sleep(0.05)
        (folder / "said.json").write_text(json.dumps(said | {"address": f"127.0.0.1:{found[0]['port']}"}))
        groups = [names] if together else [[name] for name in names]
        clients = {group[0]: start("attend", ",".join(group)) for group in groups}
        pids = {name: client.pid for name, client in clients.items()}
        watch = round_notes.Watch(notes, {"server": server.pid} | pids)
        until = time.monotonic() + PATIENCE_S
        while server.poll() is None and time.monotonic() < until:
            watch.look()
            time.sleep(0.05)
        alive = sum(client.poll() is None for client in clients.values())
        if server.poll() is None:
            raise SystemExit(f"server: not done after {PATIENCE_S:.0f} s")
        _still_well(server, folder)
    of_sites = [round_notes.read(folder / f"site-{name}.jsonl") for name in names]
    of_rounds = round_notes.figures(round_notes.read(notes), of_sites)
    return of_rounds | watch.found() | {"site_pids": list(pids.values()), "same_pids": alive}


def _still_well(server: subprocess.Popen[bytes], folder: Path) -> None:
    """Raises SystemExit with the end of the log if the server has failed."""
    if server.poll():
        raise SystemExit(f"server: {server.returncode}\n{(folder / 'log').read_text()[-3000:]}")


@contextmanager
def ending(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Gives a function that starts a process of the deployment in `folder`; all of them end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(role: str, *args: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(PROCESSES), role, str(folder), *args]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        with open(folder / "log", "ab") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
        return started[-1]

    try:
        yield start
    finally:
        for process in started[::-1]:
            process.kill()
            process.wait()


def main(
    mib: Annotated[list[int], typer.Option(help="Size of the state; may be given again.")] = [1, 50, 200],  # noqa: B006
    sites: Annotated[list[int], typer.Option(help="Number of sites; may be given again.")] = [2],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds measured.")] = 5,
    together: Annotated[bool, typer.Option(help="All sites in one process.")] = False,
    json_: Annotated[Path | None, typer.Option("--json", help="File for all figures.")] = None,
) -> None:
    """Seconds per round without training, by size of the state."""
    found = []
    for n in sites:
        for size in mib:
            load = os.getloadavg()[0]
            found.append(r := measure(size, n, rounds, together) | {"load": [load, os.getloadavg()[0]]})
            show(r)
            if json_:
                json_.write_text(json.dumps(found, indent=1) + "\n")


def show(r: dict[str, Any]) -> None:
    """One size, for people."""
    s, both = r["round_s"], r["bytes"]
    spent = ", ".join(f"{p} {v:.2f}" for p, v in r["phases_s"].items())
    sites = [v for k, v in r["cpu_s"].items() if k != "server"]
    cpu = f"server {r['cpu_s']['server']:.2f}, sites {sum(sites):.2f}"
    peak = f"server {r['peak_mib']['server']:.0f}"
    typer.echo(
        f"{r['mib']} MiB, {r['sites']} sites, load {r['load'][0]:.1f} to {r['load'][1]:.1f}\n"
        f"  round  {s['median']:.2f} s (from {s['min']:.2f} to {s['max']:.2f}): {spent}\n"
        f"  bytes  {both['up']} up, {both['down']} down; bare TLS {r['tls_s']:.2f} s, bare disk {r['disk_s']:.2f} s, "
        f"beyond them {r['beyond_s']:.2f} s; loopback {r['loopback'] / (both['up'] + both['down']):.3f} times as many\n"
        f"  CPU s  {cpu} per round; peak MiB {peak}; sites' processes {r['site_pids']}, "
        f"{r['same_pids']} of {len(r['site_pids'])} still the same; "
        f"status asked {r['status_per_round']}, refused {r['refused']}"
    )


if __name__ == "__main__":
    typer.run(main)
