"""Silent strangers that come again and again while sites train: does every round close, and how much later?

    python benchmarks/deployment/strangers.py --strangers 1100 --seconds 60 --sites 8 --mib 1

A server and its sites run as in `rounds.py`, all with their real keys, TLS, journal and commits. After some rounds
strangers hold connections from the sites' own address and say nothing; who is thrown out comes back at once. After so
many seconds they leave, and as many rounds follow as came before. Printed is the time of a round with them over that
without, both medians of the same run, and whether the states are those of a run that nobody disturbed. Exit code 1 if
no round closed while they were there, or a state is another.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 10**5  # rounds; the run is ended when the last of those that count is over


def main(
    strangers: Annotated[int, typer.Option(help="How many there are at a time.")] = 1100,
    seconds: Annotated[float, typer.Option(help="How long they come.")] = 60,
    sites: Annotated[int, typer.Option(help="Number of sites.")] = 8,
    mib: Annotated[int, typer.Option(help="Size of the state.")] = 1,
    quiet: Annotated[int, typer.Option(help="Rounds before the strangers come, and after they left.")] = 20,
    json_: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Rounds with strangers at the port and without, in one run."""
    folder, calm = Path(mkdtemp(prefix="fedft-strangers-")), Path(mkdtemp(prefix="fedft-strangers-"))
    try:
        ends, came, (begin, end) = attacked(folder, sites, mib, quiet, strangers, seconds)
        attacked(calm, sites, mib, len(ends) - 1, 0, 0)
        found, wanted = digests(folder), digests(calm)
    finally:
        for place in (folder, calm):
            rmtree(place, ignore_errors=True)
    spent = [(b - a, a > begin and b < end) for a, b in pairwise(ends[1:])]  # the first has the enrolment in it
    with_them = [s for s, during in spent if during]
    without = [s for s, during in spent if not during]
    n = min(len(found), len(wanted))
    equal = n > 2 * quiet and found[:n] == wanted[:n]
    ratio = statistics.median(with_them) / statistics.median(without) if with_them else float("nan")
    row = {
        "strangers": strangers,
        "came": came,
        "rounds": {"with": len(with_them), "without": len(without)},
        "round_s": {"with": statistics.median(with_them or [0]), "without": statistics.median(without)},
        "slowest_s": {"with": max(with_them, default=0), "without": max(without)},
        "ratio": ratio,
        "equal": equal,
    }
    typer.echo(
        f"{len(with_them)} rounds while {came} strangers came, {strangers} at a time: median {ratio:.2f} times that of "
        f"{len(without)} rounds without; slowest {row['slowest_s']['with']:.2f} s and "  # type: ignore[index]
        f"{row['slowest_s']['without']:.2f} s; states of {n} rounds {'equal' if equal else 'UNEQUAL'}"  # type: ignore[index]
    )
    if json_:
        json_.write_text(json.dumps(row, indent=1) + "\n")
    raise typer.Exit(0 if equal and with_them else 1)


def attacked(
    folder: Path, sites: int, mib: int, quiet: int, strangers: int, seconds: float
) -> tuple[list[float], int, tuple[float, float]]:
    """When each round ended, how many strangers came, and from when to when they did, by the machine's clock."""
    import round_notes
    from rounds import PATIENCE_S, ending, make_keys

    names = [f"site{i:03d}" for i in range(sites)]
    make_keys(folder, names)
    said = {"mib": mib, "rounds": ENOUGH}
    (folder / "said.json").write_text(json.dumps(said))
    notes, until = folder / "server.jsonl", time.monotonic() + PATIENCE_S + seconds

    def ends() -> list[float]:
        return [e["at"] for e in round_notes.read(notes) if e["what"] == "line"]

    def wait_for(rounds: int) -> None:
        while len(ends()) < rounds:
            if server.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"no round {rounds}\n{(folder / 'log').read_text()[-3000:]}")
            time.sleep(0.1)

    with ending(folder) as start:
        server = start("serve")
        while not (found := round_notes.read(notes)):
            time.sleep(0.05)
        port = found[0]["port"]
        (folder / "said.json").write_text(json.dumps(said | {"address": f"127.0.0.1:{port}"}))
        start("attend", ",".join(names))
        wait_for(quiet + 1)
        begin, came = time.monotonic(), 0
        if strangers:
            came = come(folder, port, server.pid, names[0], strangers, seconds)
        end = time.monotonic()
        wait_for(len(ends()) + (quiet if strangers else 0))
    return ends(), came, (begin, end)


def come(folder: Path, port: int, pid: int, site: str, strangers: int, seconds: float) -> int:
    """Have the strangers come from a process of their own, until the time is over; returns how many did."""
    script = ROOT / "tests" / "attack" / "attack_port.py"
    key = folder / "sites" / site / "node.key"
    where = ["--port", port, "--ca", folder / "keys" / "ca.pem", "--pid", pid, "--node-key", key, "--only", "again"]
    words = map(str, [sys.executable, script, *where, "--conns", strangers, "--hold", seconds])
    done = subprocess.run(list(words), check=True, capture_output=True, text=True, env=dict(os.environ))
    return int(json.loads(done.stdout.splitlines()[0])["did"]["came"])


def digests(folder: Path) -> list[str]:
    """The digest of the state after each round."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["state_digest"] for line in lines if line.endswith("}")]


if __name__ == "__main__":
    typer.run(main)
