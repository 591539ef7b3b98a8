"""`fedft records`: what a site has written down of the answers that left it, a server of its run and past rounds."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fedft.security.chained_lines import Chain
    from fedft.server.archive_check import Archived

app = typer.Typer(
    name="records",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()  # without it, typer makes an app of one command that command
def _records() -> None:
    """Records that show whether they were changed: sent.jsonl of a site, audit.jsonl and archive of a server."""


@app.command()
def verify(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A site's state folder, a server's run folder, or a record out of one."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines.")] = False,
) -> None:
    """Whether every line is there, unchanged and in its place; exit code 1 with the line that is not."""
    from fedft.client import sent_records
    from fedft.security.chained_lines import BrokenChain
    from fedft.server import archive, archive_check, audit

    of_run = folder.name == audit.FILE or (folder / audit.FILE).exists() or (folder / "config.toml").exists()
    archived = (folder / archive.FOLDER).is_dir()
    chain = past = None
    try:
        if not of_run:
            chain = sent_records.verify(folder)
        elif folder.name == audit.FILE or (folder / audit.FILE).exists():
            chain = audit.verify(folder)
        if archived or (of_run and chain is None):
            past = archive_check.verify(folder)
    except (BrokenChain, archive_check.BrokenArchive) as e:
        typer.echo(json.dumps({"broken": str(e)})) if as_json else typer.echo(f"fedft: {e}", err=True)
        raise typer.Exit(1) from e
    if as_json:
        both = {} if past is None else past._asdict() if chain is None else {"archive": past._asdict()}
        typer.echo(json.dumps({**(chain._asdict() if chain else {}), **both}))
        return
    if chain is not None:
        _say_chain(chain)
    if past is not None:
        _say_archive(past)


def _say_chain(chain: "Chain") -> None:
    torn = f"; {chain.torn} bytes behind them are a line that a crash cut off" if chain.torn else ""
    typer.echo(f"{chain.lines} lines hold together, the last is {chain.last}{torn}")


def _say_archive(found: "Archived") -> None:
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
