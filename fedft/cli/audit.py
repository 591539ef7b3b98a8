"""`fedft audit`: what an outsider could take from the model of a run."""

import json
from functools import partial
from typing import Annotated

import typer

from fedft.cli.finished import RunFolder
from fedft.cli.options import Allow, AsJson
from fedft.errors import ConfigError


def audit(
    folder: RunFolder,
    start: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Generate from this text, too; can be repeated.")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="Texts to generate; 0: none.")] = 64,
    iterative: Annotated[
        bool, typer.Option("--iterative", help="The base learns each text before the next, which then is another.")
    ] = False,
    shadows: Annotated[
        int, typer.Option(min=0, help="Runs like this one, for the strongest membership inference; each takes as long.")
    ] = 0,
    show: Annotated[
        bool, typer.Option("--show", help="Also the most contrasting texts; they may be somebody's.")
    ] = False,
    release: Annotated[
        bool, typer.Option("--release", help="Instead: write model/, though the run's gate holds it back.")
    ] = False,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Exposure of planted secrets, membership, a lower bound on epsilon, and what the model writes of its data."""
    from fedft.privacy.audit.contrasts import Wanted
    from fedft.reports import audits
    from fedft.reports.terminal import table
    from fedft.simulations import audited_run

    if release:
        given = {"--start": start, "--show": show, "--shadows": shadows, "--iterative": iterative}
        if said := ", ".join(name for name, value in given.items() if value):
            raise ConfigError(f"--release writes the model and audits nothing; leave {said} out")
        why = audited_run.release(folder)
        told = {"model": str(folder / "model"), "released_though": why}
        typer.echo(json.dumps(told) if as_json else f"{told['model']} is written, though {why}")
        return
    if iterative and not samples:
        raise ConfigError("--iterative: nothing is generated with --samples 0; leave one of them out")
    wanted, aloud = Wanted(samples, tuple(start or ())), partial(typer.echo, err=True)
    found = audited_run.audit_run(folder, wanted, iterative=iterative, shadows=shadows, told=aloud)
    texts = [{"score": score, "given": given, "written": written} for score, given, written in found.texts]
    if as_json:
        typer.echo(json.dumps({**found.said, **({"texts": texts} if show else {})}, sort_keys=True))
        return
    table(audits.rows(found.said), audits.HEADS)
    for line in found.said["missing"]:
        typer.echo(f"not measured: {line}")
    if held := found.said.get("gate", {}).get("held_back"):
        typer.echo(f"above its gate: {held}")
    if show:
        table(texts, ("score", "given", "written"))
