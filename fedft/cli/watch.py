"""The commands that look at a run from outside: `fedft status` and `fedft board`."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from fedft.cli.deploy import address_of

REFRESH_S = 1.0

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, running or finished, or a race's.")]


def status(
    folder: Folder,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """How a run stands: round, who has answered, refusals, loss, bytes, deadline. The run is not disturbed."""
    from fedft.board import status_text
    from fedft.board.run_folders import FolderReader

    reader = FolderReader(folder)

    def said() -> str:
        found = reader.status()
        return json.dumps(found) if as_json else "\n".join(status_text.lines(found))

    text = said()
    if not watch:
        typer.echo(text)
        return
    with suppress(KeyboardInterrupt), _shown(sys.stdout.isatty() and not as_json) as show:
        while True:
            show(text)
            time.sleep(REFRESH_S)
            text = said()


@contextmanager
def _shown(in_place: bool) -> Iterator[Callable[[str], None]]:
    """What shows a text: in place of the one before, or, where there is no terminal to draw on, below it."""
    if not in_place:
        yield typer.echo
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda text: live.update(Text(text), refresh=True)


def board(
    folder: Folder,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT; beyond this machine a token is asked for.")
    ] = "127.0.0.1:8080",
) -> None:
    """The same as a page, with curves and sites, for browsers and Prometheus, until Ctrl-C. Read-only."""
    from fedft.board import listener
    from fedft.board.run_folders import FolderReader

    FolderReader(folder).status()
    with listener.serving(folder, *address_of(listen, "--listen"), "--listen") as address:
        typer.echo(f"board  {address}")
        with suppress(KeyboardInterrupt):
            _wait()


def _wait() -> None:
    """Wait for Ctrl-C."""
    threading.Event().wait()
