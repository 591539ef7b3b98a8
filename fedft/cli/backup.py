"""`fedft backup` and `fedft restore`: a run's folder, or a site's state, in one file, and back."""

import json
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from fedft.cli.options import AsJson


def backup(
    folder: Annotated[Path, typer.Argument(metavar="RUN|STATE", help="A run folder, or a site's state folder.")],
    to: Annotated[Path, typer.Option(help="File to write, such as run.tar; or a folder, for a file with the date.")],
    as_json: AsJson = False,
) -> None:
    """Write one file from which the run, or the site, goes on; it may be in use meanwhile."""
    from fedft.backups import archive, snapshot

    day = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = to / f"{folder.resolve().name}-{day}.tar" if to.is_dir() else to
    with snapshot.taken(folder) as found:
        said = archive.write(path, found.kind, found.parts)
    size = path.stat().st_size
    if as_json:
        typer.echo(json.dumps({**said, "file": str(path), "left_out": found.left_out}))
        return
    typer.echo(f"{path}: {len(found.parts)} files of a {found.kind}, {size} bytes, each with its SHA-256")
    if found.left_out:
        typer.echo(f"left out: {', '.join(found.left_out)}")
    typer.echo(f"next: keep it elsewhere, readable by nobody else; `fedft restore {shlex.quote(path.name)} --to DIR`")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As `fedft backup` wrote it.")],
    to: Annotated[Path, typer.Option(help="Folder to make: a run folder, or a site's state folder.")],
) -> None:
    """Put a run's folder, or a site's state, back as it was; nothing is overwritten."""
    from fedft.backups import archive

    said = archive.restore(file, to)
    typer.echo(f"{to}: {len(said['files'])} files of a {said['kind']}, as they were at {said['made']}")
    starts = {"run": "`fedft server` with this folder as --out", "site": "`fedft client`"}
    typer.echo(f"next: {starts[said['kind']]} goes on from there; nothing else is to be done by hand")
