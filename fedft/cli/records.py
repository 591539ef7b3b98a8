"""`fedft records`: what a site has written down of the answers that left it, and a server of its run."""

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
    """Records that show whether they were changed: a site's sent.jsonl, and audit.jsonl in a server's run folder."""


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A site's state folder, a server's run folder, or a record out of one."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Whether every line is there, unchanged and in its place; exit code 1 with the line that is not."""
    from fedft.client import sent_records
    from fedft.security.chained_lines import BrokenChain
    from fedft.server import audit

    of_run = folder.name == audit.FILE or (folder / audit.FILE).exists() or (folder / "config.toml").exists()
    try:
        chain = audit.verify(folder) if of_run else sent_records.verify(folder)
    except BrokenChain as e:
        typer.echo(json.dumps({"broken": str(e)})) if as_json else typer.echo(f"fedft: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        typer.echo(json.dumps(chain._asdict()))
        return
    torn = f"; {chain.torn} bytes behind them are a line that a crash cut off" if chain.torn else ""
    typer.echo(f"{chain.lines} lines hold together, the last is {chain.last}{torn}")
