"""A deployment that is disturbed all the time must end with the bytes of a simulation that nobody disturbed.

    python benchmarks/deployment/chaos.py RUN.toml --kills 30 --seed 0 --set server.rounds=60

Simulates the run file, then deploys it on this machine: a server, a client for each site, and a proxy before each site
that stands for the network. At random moments, spread over the rounds, one of them is killed, stopped in an orderly
way, frozen for a while or cut off, a third of the times before the last one has recovered; it comes back at once or
after a pause. All sites must be in every round, so that the same updates are added up. Exit code 1 if any state differs
from the simulation's, or if the run gets stuck.
"""

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Annotated, Any

import typer

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from disturbances import HOW, TOO_SOON, Chaos, plan
from network import Wire
from processes import FEDFT, Deployment


def main(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml")],
    kills: Annotated[int, typer.Option(help="Disturbances in all.")] = 30,
    seed: Annotated[int, typer.Option(help="Of what happens when.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to work in [default: a new temporary one].")] = None,
    patience: Annotated[float, typer.Option(help="Seconds without a new state that count as stuck.")] = 180,
) -> None:
    """Disturb a deployment and compare it with an undisturbed simulation."""
    rng = random.Random(seed)
    ended = disturb(out, run, list(set_ or ()), [rng.choice(list(HOW)) for _ in range(kills)], seed, patience)
    typer.echo(ended.line)
    if ended.digest:
        typer.echo(f"state digest {ended.digest}")
    raise typer.Exit(0 if ended.equal and not ended.wrong else 1)


@dataclass(frozen=True)
class End:
    """How a disturbed deployment ended."""

    equal: bool
    """Whether all states are the simulation's."""
    wrong: list[str]
    """What no disturbance explains."""
    line: str
    """The same for people, with figures."""
    digest: str
    """Of the last state; empty for a deployment that got stuck."""
    done: list[dict[str, Any]]
    """What was done to it."""
    rounds: int


def disturb(out: Path | None, run: Path, sets: list[str], what: list[str], seed: int, patience: float) -> End:
    """Simulate a run file, deploy it, strike what `what` says ("server", "client", "network"), and compare the two."""
    from fedft import run_file

    folder = out or Path(mkdtemp(prefix="fedft-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [*sets, "server.quorum=1.0", f"server.deadline_s={10 * patience}"]
    rounds = run_file.load(run, overrides).server.rounds
    simulated_s = simulate(run, overrides, folder / "simulated")
    typer.echo(f"simulated {rounds} rounds in {simulated_s:.0f} s; {folder}")
    with Deployment(folder, run, overrides) as deployment:
        chaos, names = deployed(deployment)
        started = time.monotonic()
        finished = chaos.run(plan(what, seed, rounds, names), patience)
        wall_s = time.monotonic() - started
        end(chaos, finished)
    found = digests(deployment.out) if finished else []
    equal = finished and found == digests(folder / "simulated")
    slowest_s = show(chaos, started)
    verdict = "stuck" if not finished else "all states equal" if equal else "UNEQUAL"
    line = (
        f"{verdict}: {len(chaos.done)} of {len(what)} kills, {rounds} rounds, {wall_s:.0f} s "
        f"(simulation {simulated_s:.0f} s); at most {slowest_s:.1f} s from a return to the next state; "
        f"{len(chaos.wrong)} things wrong"
    )
    return End(equal, chaos.wrong, line, found[-1] if found else "", chaos.done, rounds)


def simulate(run: Path, overrides: list[str], out: Path) -> float:
    """Simulate the run file into the folder `out`; returns the seconds that took."""
    started = time.monotonic()
    sets = [part for override in overrides for part in ("--set", override)]
    command = [*FEDFT, "simulate", str(run), *sets, "--out", str(out), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


def deployed(deployment: Deployment) -> tuple[Chaos, list[str]]:
    """Start a server and a client behind a proxy for each site; returns what disturbs them, and the sites' names."""
    names = deployment.rehearse()
    wires = {name: Wire(deployment.port) for name in names}
    for name, wire in wires.items():
        file = deployment.site(name) / "site.toml"
        file.write_text(file.read_text().replace(f":{deployment.port}", f":{wire.port}"))
    server = deployment.server()
    return Chaos(server, {name: deployment.client(name) for name in names}, wires, typer.echo), names


def end(chaos: Chaos, finished: bool) -> None:
    """Stop the clients; what does not end well after a finished run, or is left of it, is noted as wrong."""
    for name, client in chaos.clients.items():
        client.send(signal.SIGCONT)
        if finished and name not in chaos.down and (code := client.stop()) not in (0, TOO_SOON):
            chaos.wrong.append(f"{name}: exit code {code} after SIGTERM at the end")


def show(chaos: Chaos, started: float) -> float:
    """Print what was done and what was wrong; returns the most seconds from a return to the next state."""
    from fedft.reports.terminal import table

    for d in chaos.done:
        after = [t - started - d["at"] for t, _ in chaos.states if t - started > d["at"]]
        d["next_state"] = min(after, default=None)
    table(chaos.done, ("at", "states", "what", "how", "away", "next_state"))
    for line in chaos.wrong:
        typer.echo(f"wrong: {line}")
    return max((d["next_state"] - d["away"] for d in chaos.done if d["next_state"]), default=0.0)


def digests(folder: Path) -> list[str]:
    """The state digest of every version, from a run folder."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["state_digest"] for line in sorted(lines, key=lambda line: line["version"])]


if __name__ == "__main__":
    typer.run(main)
