"""`fedft site`: which runs ask for this site, what its operator says to them, and what comes of them."""

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedft.cli.options import AsJson
from fedft.errors import PlanRefused

if TYPE_CHECKING:
    from fedft.client.known_runs import KnownRun
    from fedft.client.site_settings import SiteConfig

MAX_TEXT = 300  # characters of what a server says, in lines for people

app = typer.Typer(name="site", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site file, as `fedft client` takes it.")]


@app.callback()
def _site() -> None:
    """At a site: which runs ask for it, what its operator says to them, and the model that it has of one."""


@app.command()
def runs(site: SiteFile, as_json: AsJson = False) -> None:
    """The runs that were asked for here, what each wants, whether it waits, is approved or refused, and what they cost.

    The last line is the privacy that this site's rows have lost in all runs: epsilon, by its own ledger.
    """
    from fedft.client import spent_privacy

    config, known = _known(site)
    rows = [_row(run, config) for run in known.all()]
    spent = spent_privacy.spent(config)
    if as_json:
        typer.echo(json.dumps({"approve": config.policy.approve, "runs": rows, "privacy": spent}))
        return
    if not rows:
        typer.echo("no run has asked for this site yet")
    for row in rows:
        _show(row)
        if row["state"] == "waits":
            command = f"fedft site approve {site} {row['run']} --job {row['job'][:12]}"
            typer.echo(f"  {'':<14}-> {command}    (or the same with --refuse)")
    if spent is not None:
        typer.echo(f"privacy: {spent_privacy.in_words(spent)}")


@app.command()
def approve(
    site: SiteFile,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's identifier, or its first digits.")],
    job: Annotated[str, typer.Option(help="Digest of the job that is meant, or its first digits.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no: all that the run asks is refused.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a run train here, or refuse it; `fedft client` goes by it from the next message on, no restart is needed."""
    config, known = _known(site)
    found = known.find(run, job)
    known.decide(found, "refused" if refuse else "approved")
    row = _row(known.find(found.run), config)
    if as_json:
        typer.echo(json.dumps(row))
    else:
        _show(row)


@app.command()
def export(
    site: SiteFile,
    run: Annotated[str, typer.Option(metavar="RUN", help="The run's identifier, or its first digits.")],
    to: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    merged: Annotated[bool, typer.Option("--merged", help="The whole model with the change merged in.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the model that this site has of a run, from its own disk: a PEFT folder, or merged with its base."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # before any library looks: nobody is asked for anything
    config, _ = _known(site)
    from fedft.client import own_model

    done = own_model.export(config, run, to, merged=merged)
    if as_json:
        typer.echo(json.dumps({**done._asdict(), "folder": str(to)}))
        return
    own = ", with what this site keeps for itself" if done.personal else ""
    part = f", this site's part of rank {done.part_of_rank}" if done.part_of_rank else ""
    after = f"{done.rounds} round{'s' * (done.rounds != 1)}"
    typer.echo(f"{done.kind} written to {to}: run {done.run} after {after}{own}{part}")
    typer.echo("that is the last state that this site received; the run may have gone on without it")


def _known(file: Path) -> tuple["SiteConfig", Any]:
    from fedft import allowed_code
    from fedft.client import site_file
    from fedft.client.known_runs import KnownRuns

    config = site_file.load(file)
    allowed_code.allow(config.own_code)  # as `fedft client` does
    return config, KnownRuns(Path(config.site.state))


def _row(known: "KnownRun", config: "SiteConfig") -> dict[str, Any]:
    """One run: its state, and what it asks as the policy is now."""
    from fedft.client import asked_of_site

    state = known.decision or ("waits" if config.policy.approve == "ask" else "taken up")
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(known.at))
    row = {"run": known.run, "state": state, "since": at, "job": known.digest}
    try:
        return row | {"asks": asked_of_site.asked(known.job, config)}
    except PlanRefused as e:
        return row | {"state": "against the policy", "asks": {e.code: str(e)}}


def _show(row: dict[str, Any]) -> None:
    from fedft.carriers.interface import printable

    typer.echo(f"run {row['run']}  {row['state']}, asked since {row['since']}, job {row['job'][:12]}")
    for name, text in row["asks"].items():
        more = "" if len(text) <= MAX_TEXT else f"... {len(text)} characters, --json has all"
        typer.echo(f"  {name:<14}{printable(text)[:MAX_TEXT]}{more}")
