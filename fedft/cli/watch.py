"""The commands that look at a run from outside: `fedft status` and `fedft board`."""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from fedft.cli import logs
from fedft.cli.deploy import address_of
from fedft.errors import ConfigError

REFRESH_S = 1.0
MAX_TOKEN_BYTES = 4096

log = logging.getLogger(__name__)

Status = Callable[[], tuple[dict[str, Any], float | None]]
"""The status of now, and the time from which its deadlines are counted; None: this machine's. Raises ConfigError."""

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, running or finished, or a race's.")]


def status(
    place: Annotated[
        str,
        typer.Argument(
            metavar="RUN|HOST:PORT",
            help="A run folder, running or finished, or a race's; or a board's address, http:// and https:// too.",
        ),
    ],
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every second, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the board's token (default: FEDFT_BOARD_TOKEN).")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="PEM file of who vouches for an https:// board.")] = None,
) -> None:
    """How a run stands: round, who has answered, refusals, loss, bytes, deadline. The run is not disturbed."""
    from fedft.board import status_text

    read = _reader(place, token_file, ca)

    def said() -> str:
        found, now = read()
        return json.dumps(found) if as_json else "\n".join(status_text.lines(found, now))

    text = said()
    if not watch:
        typer.echo(text)
        return
    with suppress(KeyboardInterrupt), _shown(sys.stdout.isatty() and not as_json) as show:
        while True:
            show(text)
            time.sleep(REFRESH_S)
            try:
                text = said()
            except ConfigError as e:  # it may come back: a board whose server is started again
                text = json.dumps({"error": str(e)}) if as_json else f"fedft: {e}"


def _reader(place: str, token_file: Path | None, ca: Path | None) -> Status:
    """What reads the status of a folder or of a board. Raises ConfigError for options that do not fit."""
    from fedft.board import listener, network_status

    board = None if Path(place).exists() else network_status.address(place)
    if board is not None:
        token = _token(token_file)
        if (board.token or token) and board.scheme == "http" and not listener.loopback(board.host):
            log.warning("the token goes to %s unencrypted", board)
        return lambda: network_status.read(board, token, ca)
    if given := [name for name, value in (("--token-file", token_file), ("--ca", ca)) if value is not None]:
        raise ConfigError(f"{given[0]} is for a board's address; {place!r:.200} is none, wanted HOST:PORT or https://")
    from fedft.board.run_folders import FolderReader

    reader = FolderReader(Path(place))
    return lambda: (reader.status(), None)


def _token(file: Path | None) -> str:
    """The token for a board: of the file, else of the environment; "" for none. Raises ConfigError."""
    from fedft.board import listener
    from fedft.security import key_files

    if file is None:
        return os.environ.get(listener.TOKEN, "")
    token = key_files.read_text(file, "wanted the board's token in it", MAX_TOKEN_BYTES).strip()
    if not token:
        raise ConfigError(f"{file}: is empty; wanted the board's token in it")
    return token


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
    log_: logs.LogForm = "lines",
) -> None:
    """The same as a page, with curves and sites, for browsers and Prometheus, until Ctrl-C. Read-only."""
    if log_ == "json":
        logs.start(log_)
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
