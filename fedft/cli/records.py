"""`fedft records`: what a site has written down of the answers that left it, and a server of past rounds."""

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="records",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()  # without it, typer makes an app of one command that command
def _records() -> None:
    """A site's own record of what it has sent, and a run's archive of past rounds."""


@app.command()
def verify(
    state: Annotated[
        Path, typer.Argument(metavar="STATE", help="A site's state folder, a sent.jsonl, or a run folder.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Whether every line is there, unchanged and in its place; exit code 1 with the line that is not."""
    from fedft.client import sent_records

    if (state / "config.toml").exists():  # a run's folder
        _archive(state, as_json)
        return
    try:
        chain = sent_records.verify(state)
    except sent_records.BrokenChain as e:
        typer.echo(json.dumps({"broken": str(e)})) if as_json else typer.echo(f"fedft: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps(chain._asdict()))
        return
    torn = f"; {chain.torn} bytes behind them are a line that a crash cut off" if chain.torn else ""
    typer.echo(f"{chain.lines} lines hold together, the last is {chain.last}{torn}")


def _archive(run: Path, as_json: bool) -> None:
    """Whether a run's archive is as it was written."""
    from fedft.server import archive_check

    try:
        found = archive_check.verify(run)
    except archive_check.BrokenArchive as e:
        typer.echo(json.dumps({"broken": str(e)})) if as_json else typer.echo(f"fedft: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps(found._asdict()))
        return
    typer.echo(f"{found.rounds} rounds are archived in {found.bytes} bytes, the last line is {found.last}")
    for what, which in (
        ("not archived, the key was off", found.missing),
        ("done again from a restored state", found.again),
        ("written without a line, by a crash", found.strays),
    ):
        if which:
            typer.echo(f"{what}: {', '.join(map(str, which[:20]))}{', ...' if len(which) > 20 else ''}")
    if found.torn:
        typer.echo(f"{found.torn} bytes behind the lines are one that a crash cut off")
