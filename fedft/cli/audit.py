"""`fedft audit`: what an outsider could take from the model of a run."""

import json
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
        if start or show:
            raise ConfigError("--release writes the model and audits nothing; leave --start and --show out")
        why = audited_run.release(folder)
        told = {"model": str(folder / "model"), "released_though": why}
        typer.echo(json.dumps(told) if as_json else f"{told['model']} is written, though {why}")
        return
    found = audited_run.audit_run(folder, Wanted(samples, tuple(start or ())))
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
