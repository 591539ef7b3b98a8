"""`fedft plan`: what a run takes at each of its clients before anything starts, and what to change where it is much."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedft.cli.options import Allow, AsJson, SetKeys
from fedft.errors import ConfigError

if TYPE_CHECKING:
    from fedft.cli.planned import Planned
    from fedft.forecast.clients import Client, Group, Run
    from fedft.forecast.probe import Probe
    from fedft.forecast.remedies import Remedy

COLUMNS = (
    "clients", "rank", "base", "adapter", "optimizer", "activations", "logits", "peak", "down", "up", "steps", "work",
    "round",
)  # fmt: skip
log = logging.getLogger(__name__)
SPARE = ("steps", "optimizer", "logits", "adapter")


def plan(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Run file.")],
    site: Annotated[
        Path | None, typer.Argument(metavar="[SITE.toml]", help="Plan for this site: its rows, device and limits.")
    ] = None,
    set_: SetKeys = None,
    allow: Allow = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure a few steps here, in at most 30 s.")] = False,
    flops: Annotated[float | None, typer.Option(help="Operations a second of a client, if you know them.")] = None,
    up: Annotated[float | None, typer.Option(help="Bytes a second from a client to the server.")] = None,
    down: Annotated[float | None, typer.Option(help="Bytes a second from the server to a client.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a run takes: memory, bytes, operations and time of each client, and of all rounds. Nothing is trained.

    Needs no weights. Exit code 2 where a client's memory is not enough, with the cheapest change of the run file that
    makes it enough.
    """
    from fedft import run_file
    from fedft.cli import planned
    from fedft.forecast.clients import clients_of, grouped, run_of
    from fedft.forecast.remedies import cheapest

    device = planned.speed_of(flops, up, down)
    found = planned.read(run_file.load(run, set_ or ()), site)
    measured = None
    if probe:
        from fedft.forecast import probe as probes

        measured = probes.measure(found.of, found.rows)
        device = measured.device(device)
    state = _first_state(found) if found.of.recipe.plans_work and site is None else None
    devices = found.devices if device.flops is None else device
    clients = clients_of(found.of, found.rows, devices, state)
    if state is not None:
        _say_what_may_be_planned(clients, clients_of(found.of, found.rows))
    if measured is not None:
        clients = [measured.corrected(c) for c in clients]
    groups, whole = grouped(clients), run_of(clients, found.of.config)
    limit, whose = found.limit
    over = [g for g in groups if limit is not None and g.largest.memory.peak > limit]
    remedies = {g.largest.name: cheapest(g.largest.of, g.largest.work, limit or 0) for g in over}
    if as_json:
        typer.echo(json.dumps(_as_dict(found, groups, whole, remedies, measured), sort_keys=True))
    else:
        _show(found, groups, whole, measured)
    if over:
        raise ConfigError(_refusal(over[0], remedies[over[0].largest.name], limit or 0, whose))


def _first_state(found: "Planned") -> Any:
    of = found.of
    return of.recipe.first_state(of.layout, max(of.config.ranks()), of.config.server.seed)


def _say_what_may_be_planned(first: "list[Client]", unplanned: "list[Client]") -> None:
    """Warn where clients of a later round may be asked for more than those of the first one."""
    from fedft.reports.quantities import size

    peak, up = (max(of) for of in zip(*((c.memory.peak, c.up) for c in unplanned), strict=True))
    if peak > max(c.memory.peak for c in first) or up > max(c.up for c in first):
        said = "this is the first round as it is planned; a later one may take up to %s of memory and %s up at a client"
        log.warning(said, size(round(peak)), size(up))


def _refusal(group: "Group", remedy: "Remedy", limit: int, whose: str) -> str:
    """The line that says that a client does not fit, and what to change."""
    from fedft.reports.quantities import size

    peak = group.largest.memory.peak
    who = f"{group.largest.name} needs {size(round(peak))}, {size(limit)} are there ({whose})"
    if remedy.fits:
        return f"does not fit: {who}; {remedy.text}: {size(round(remedy.peak))} of {size(limit)}"
    least = f"the least is {size(round(remedy.peak))}, with {remedy.text}" if remedy.text else "nothing makes it less"
    return f"does not fit: {who}; no change of the run file is enough: {least}"


def _show(found: "Planned", groups: "list[Group]", whole: "Run", measured: "Probe | None") -> None:
    """Print the table, and below it the run as a whole."""
    from fedft.reports import privacy_lines
    from fedft.reports.quantities import count, duration, size
    from fedft.reports.terminal import table

    limit, _ = found.limit
    cells = []
    for g in groups:
        m, slow = g.largest.memory, g.slowest
        of = f" of {size(limit)}" if limit is not None else ""
        cells.append({
            "clients": g.name, "rank": g.largest.rank or "-", "base": size(round(m.base)),
            "adapter": size(round(m.adapter)), "optimizer": size(round(m.optimizer)),
            "activations": size(round(m.activations)), "logits": size(round(m.logits)),
            "peak": f"{size(round(m.peak))}{of} ({m.where})", "down": size(max(c.down for c in g.clients)),
            "up": size(max(c.up for c in g.clients)), "steps": slow.steps, "work": f"{count(round(slow.flops))}FLOP",
            "round": duration(slow.seconds) if slow.seconds is not None else "",
        })  # fmt: skip
    table(cells, COLUMNS, SPARE)
    if not found.of.anatomy.known:
        typer.echo(f"a {found.of.anatomy.kind} model: its activations are a rough estimate; --probe measures them")
    asked = f"{whole.asked} of {sum(len(g.clients) for g in groups)} clients a round"
    time = f", {duration(whole.seconds)} of training and links" if whole.seconds is not None else ""
    time += f", {duration(whole.evaluation)} of evaluations" if whole.evaluation else ""
    disk = f"; run folder {size(found.disk)}" if found.disk is not None else ""
    rounds = f"{whole.rounds} rounds, {asked}: {size(whole.up)} up, {size(whole.down)} down{time}{disk}"
    typer.echo(f"run      {rounds}")
    typer.echo(f"pace     {whole.pace} {whole.why}")
    typer.echo(f"process  {size(round(groups[0].largest.memory.process))} of each peak are Python and its libraries")
    if (s := found.server) is not None:
        parts = {"base": s.base, "state": s.state, "updates": s.updates, "sums": s.sums, "error": s.error}
        said = ", ".join(f"{name} {size(round(n))}" for name, n in parts.items() if n)
        typer.echo(f"server   {size(round(s.peak))} of memory at its peak ({s.where}), where it has no clients: {said}")
    for line in privacy_lines.lines(found.privacy):
        typer.echo(line)
    if measured is not None:
        typer.echo(f"probe    {measured.text}")
    if whole.cut:
        typer.echo(f"budget   {whole.cut}")


def _as_dict(
    found: "Planned", groups: "list[Group]", whole: "Run", remedies: "dict[str, Remedy]", measured: "Probe | None"
) -> dict[str, Any]:
    """All of it as plain values."""
    limit, whose = found.limit
    return {
        "fits": not remedies, "limit": limit, "limit_of": whose, "known": found.of.anatomy.known,
        "clients": [g.to_dict() for g in groups], "run": vars(whole), "disk": found.disk,
        "server": None if found.server is None else found.server.to_dict(), "privacy": dict(found.privacy),
        "remedies": {name: r._asdict() for name, r in remedies.items()},
        "probe": None if measured is None else measured.to_dict(),
    }  # fmt: skip
