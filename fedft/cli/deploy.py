"""The commands of a deployment: `fedft split`, and the services that log: `fedft server`, `queue` and `client`."""

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

import fedft
from fedft.cli import json_log, logs
from fedft.cli.options import Allow, SetKeys
from fedft.errors import ConfigError, Interrupted

PATIENCE_S = 5.0  # for a goodbye to the server

log = logging.getLogger("fedft")


def split(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file to rehearse.")],
    to: Annotated[Path, typer.Option(help="Folder to write; a folder per client, with its rows and a site file.")],
    server: Annotated[str, typer.Option(help="HOST:PORT where the server will listen.")] = "127.0.0.1:9443",
    keys: Annotated[
        Path | None, typer.Option(help="The server's key folder: makes and enrols the sites' keys.")
    ] = None,
    set_: SetKeys = None,
    allow: Allow = None,
) -> None:
    """Cut a run file's data into site folders, to rehearse its deployment on one machine."""
    from fedft import run_file as configs

    config = configs.load(run, set_ or ())
    from fedft.simulations import split_for_sites as splits

    address_of(server, "--server")
    for path in splits.split(config, to, server=server, keys=keys):
        typer.echo(path)


def server(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="The run file, as `fedft simulate` takes it.")],
    keys: Annotated[Path, typer.Option(help="The server's key folder; `fedft keys server` makes one.")],
    out: Annotated[Path, typer.Option(help="Run folder; one that holds this run is resumed.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT on which sites reach us.")] = "127.0.0.1:9443",
    superlink: Annotated[
        str, typer.Option(help="HOST:PORT of Flower's SuperLink, which then carries; we do not listen.")
    ] = "",
    superlink_ca: Annotated[Path | None, typer.Option(help="CA certificate of that SuperLink (default: ours).")] = None,
    lift: Annotated[list[str] | None, typer.Option(metavar="SITE", help="End the quarantine of a site.")] = None,
    board: Annotated[str, typer.Option(help="HOST:PORT of a page that shows the run, as `fedft board`.")] = "",
    set_: SetKeys = None,
    allow: Allow = None,
    log_: logs.LogForm = "lines",
) -> None:
    """Coordinate a run over the network. Starting again resumes; SIGTERM and Ctrl-C stop, nothing is lost."""
    from fedft import run_file as configs

    logs.start(log_)
    config = configs.load(run, set_ or ())
    fedft.starting()
    from fedft.server import app

    if superlink:
        address_of(superlink, "--superlink")
    place = app.Place(keys, None if superlink else address_of(listen, "--listen"), superlink, superlink_ca)
    _stop_on_sigterm()
    try:
        with _shown(out, board):
            summary = app.serve(config, place, out, lift=lift or (), observe=logs.say)
    except KeyboardInterrupt as e:
        raise Interrupted(f"stopped; nothing is lost: the same command continues the run in {out}") from e
    log.info("finished: %s", json.dumps(summary, sort_keys=True))


def queue(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN.toml...", help="Run files, in the order of their runs.")],
    keys: Annotated[Path, typer.Option(help="The server's key folder; `fedft keys server` makes one.")],
    out: Annotated[Path, typer.Option(help="Folder of the run folders, each called as its run file.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT on which sites reach us.")] = "127.0.0.1:9443",
    together: Annotated[int, typer.Option(help="How many runs go on side by side.")] = 1,
    board: Annotated[str, typer.Option(help="HOST:PORT of a page that shows the runs, as `fedft board`.")] = "",
    set_: SetKeys = None,
    allow: Allow = None,
    log_: logs.LogForm = "lines",
) -> None:
    """Coordinate several runs on one port, in order or side by side. Starting again resumes, finished runs stay."""
    logs.start(log_)
    from fedft.server import app, queue_runs

    for handler in logging.getLogger().handlers:
        handler.addFilter(queue_runs.NamesTheRun())
    planned = queue_runs.planned(runs, out, set_ or ())
    place = app.Place(keys, address_of(listen, "--listen"))
    whole = queue_runs.Queue(planned, place, out, together=together, observe=logs.say)
    _stop_on_sigterm()
    try:
        with _shown(out, board):
            failed = whole.carry_out()
    except KeyboardInterrupt as e:
        raise Interrupted(f"stopped; nothing is lost: the same command continues the runs in {out}") from e
    if failed:
        raise queue_runs.failure(failed, len(planned))
    log.info("finished: all %d runs", len(planned))


def client(
    site: Annotated[
        list[Path],
        typer.Argument(metavar="SITE.toml...", help="The site file, as client/site.toml; several: of several servers."),
    ],
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the server's SuperLink, where one carries.")] = "",
    log_: logs.LogForm = "lines",
) -> None:
    """Serve a site: wait for the server, train on the site's own rows, send what the policy allows.

    Sites of several servers in one process have a connection each and take turns to train.
    """
    from fedft.client import site_file as sites

    logs.start(log_)
    configs = [sites.load(file) for file in site]
    if len(configs) == 1:
        json_log.know(site=configs[0].site.name)
    from fedft.client import app

    stop = threading.Event()

    def leave() -> None:
        log.info("stopped")
        logging.shutdown()
        os._exit(0)  # the worker may be in the middle of a step; what must be durable is so at any instant

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        threading.Timer(PATIENCE_S, leave).start()  # a server that does not answer must not keep us

    for s in (signal.SIGTERM, signal.SIGINT):
        signal.signal(s, end)
    app.attend_all(configs, stop, superlink, site)
    leave()


@contextmanager
def _shown(folder: Path, board: str) -> Iterator[None]:
    """Show the run in `folder` inside the block, on the address `board` if it is not "". Raises ConfigError."""
    if not board:
        yield
        return
    from fedft.board import listener

    with listener.serving(folder, *address_of(board, "--board"), "--board") as address:
        log.info("board: %s", address)
        yield


def address_of(text: str, option: str) -> tuple[str, int]:
    """Host and port that an option says. Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 65536):
        raise ConfigError(f"{option} {text!r}: wanted HOST:PORT, for instance 0.0.0.0:9443")
    return host.strip("[]"), int(port)


def _stop_on_sigterm() -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough; the way out must not be cut short
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
