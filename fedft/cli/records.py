"""`fedft records`: what a site has written down of the answers that left it."""

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
    """A site's own record of what it has sent: sent.jsonl in its state folder."""


@app.command()
def verify(
    state: Annotated[Path, typer.Argument(metavar="STATE", help="A site's state folder, or a sent.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Whether every line is there, unchanged and in its place; exit code 1 with the line that is not."""
    from fedft.client import sent_records

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
