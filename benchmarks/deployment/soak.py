"""A deployment that runs for hours and is disturbed every minute: does its memory grow, and are its states right?

    python benchmarks/deployment/soak.py RUN.toml --minutes 30 --every 60 --csv soak.csv --set data.clients=4

Rounds follow each other without an end until the time is over. Every so many seconds a site is killed or frozen, or a
site's network cut; the server is killed in the first third of the time only, and the first site never, so that their
memory can be watched over the rest. The CSV has the resident memory and the open files of each process, every
second: seconds, process, process id, MiB, files, state. Printed are growth in MiB an hour, by least squares over the
time since the last start of a process and after its first two minutes, and whether all states are those of a simulation
of as many rounds. Exit code 1 if any is not, or the run gets stuck.
"""

import csv
import itertools
import os
import random
import statistics
import sys
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from chaos import deployed, digests, end, simulate
from disturbances import AWAY_S, HOW, Chaos, Kill
from processes import Deployment

ENDLESS = 10**6
STEADY = 15  # of so many parts of the time a process has run, the first is left out
COLUMNS = ("seconds", "process", "pid", "mib", "files", "state")


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml")],
    minutes: Annotated[float, typer.Option(help="How long.")] = 30,
    every: Annotated[float, typer.Option(help="Seconds from one disturbance to the next.")] = 60,
    seed: Annotated[int, typer.Option(help="Of what happens when.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override.")] = None,
    csv_: Annotated[Path, typer.Option("--csv", help="File for the memory curve.")] = Path("soak.csv"),
    out: Annotated[Path | None, typer.Option(help="Folder to work in [default: a new temporary one].")] = None,
    patience: Annotated[float, typer.Option(help="Seconds without a new state that count as stuck.")] = 300,
) -> None:
    """Run and disturb a deployment for a time, and watch its memory."""
    folder = out or Path(mkdtemp(prefix="fedft-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [*(set_ or ()), "server.quorum=1.0", f"server.deadline_s={10 * patience}"]
    with Deployment(folder, run, [*overrides, f"server.rounds={ENDLESS}"]) as deployment, open(csv_, "w") as file:
        chaos, names = deployed(deployment)
        curve = Curve(chaos, 60 * minutes, csv.writer(file))
        stuck = not chaos.run(kills(60 * minutes, every, seed, names), patience, curve.look)
        end(chaos, finished=True)
        chaos.server.stop()
    found = digests(deployment.out)
    rounds = len(found) - 1
    if stuck or rounds < 1:
        typer.echo(f"stuck after {rounds} rounds; {folder}")
        raise typer.Exit(1)
    simulate(run, [*overrides, f"server.rounds={rounds}"], folder / "simulated")
    equal = found == digests(folder / "simulated")
    for line in chaos.wrong:
        typer.echo(f"wrong: {line}")
    typer.echo(
        f"{'all states equal' if equal else 'UNEQUAL'}: {rounds} rounds in {minutes:g} minutes, {len(chaos.done)} "
        f"disturbances, {len(chaos.wrong)} things wrong; {csv_}"
    )
    for name, line in curve.growth().items():
        typer.echo(f"{name}: {line}")
    raise typer.Exit(0 if equal and not chaos.wrong else 1)


def kills(seconds: float, every: float, seed: int, sites: list[str]) -> list[Kill]:
    """One disturbance after the other; see the top of the file."""
    rng, planned = random.Random(seed), list[Kill]()
    for at in itertools.takewhile(lambda at: at < seconds - every, itertools.count(every, every)):
        what = rng.choice([w for w in HOW if w != "server" or at < seconds / 3])
        how = rng.choice(HOW[what])
        site = rng.choice(sites if what == "network" else sites[1:] or sites)
        planned.append(Kill(0, every, False, what, how, site, rng.uniform(0.5, min(AWAY_S, every / 2))))
    return planned


class Curve:
    """Memory and files of a deployment's processes as time goes on.

    Args:
        chaos: the deployment.
        seconds: after which `look` says that it is enough.
        writer: takes the lines of the CSV.
    """

    def __init__(self, chaos: Chaos, seconds: float, writer: Any) -> None:
        self._chaos, self._seconds, self._writer = chaos, seconds, writer
        self._began = self._last = time.monotonic()
        self._rows: list[tuple[float, str, int, float, int, int]] = []
        writer.writerow(COLUMNS)

    def look(self) -> bool:
        """Note what there is, once a second; whether the time is over."""
        now = time.monotonic()
        if now >= self._last + 1:
            self._last = now
            state = self._chaos.states[-1][1] if self._chaos.states else 0
            for name, service in {"server": self._chaos.server, **self._chaos.clients}.items():
                if held := _held(service.pid):
                    self._rows.append((round(now - self._began, 1), name, service.pid, *held, state))
                    self._writer.writerow(self._rows[-1])
        return now > self._began + self._seconds

    def growth(self) -> dict[str, str]:
        """By process: from where to where its memory went since its last start, and how steeply."""
        told = {}
        for name in dict.fromkeys(row[1] for row in self._rows):
            pid = [row[2] for row in self._rows if row[1] == name][-1]
            rows = [row for row in self._rows if row[2] == pid]
            begun = rows[0][0] + min(120.0, (rows[-1][0] - rows[0][0]) / STEADY)
            steady = [(row[0], row[3], row[4]) for row in rows if row[0] >= begun]
            if len(steady) > 1:
                (a, first, files), (b, last, files_last) = steady[0], steady[-1]
                slope = statistics.linear_regression([x[0] for x in steady], [x[1] for x in steady]).slope * 3600
                told[name] = (
                    f"{first:.1f} to {last:.1f} MiB in {(b - a) / 60:.1f} minutes, {slope:+.1f} MiB an hour; "
                    f"{files} to {files_last} files"
                )
        return told


def _held(pid: int) -> tuple[float, int] | None:
    """(MiB of resident memory, open files) of a process; None once it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2), len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return None


if __name__ == "__main__":
    typer.run(main)
