"""A run of Trackio: the numbers of `lines` by version, and the run file as its config.

Nobody is contacted unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a server: without them the run is in Trackio's
own folder on this machine (TRACKIO_DIR), which `trackio show --project fedft` shows.
"""

import logging
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from fedft.config import RunConfig
from fedft.reports.loggers import lines
from fedft.reports.observers import Observer

log = logging.getLogger(__name__)

SERVERS = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")
PROJECT = "fedft"


def trackio(folder: Path, config: RunConfig) -> Observer:
    """A run that was begun before goes on behind the last version that Trackio has of it."""
    try:
        import trackio as library
    except ImportError as e:
        raise ImportError(f"{e}; pip install 'fedft[trackio]' brings it") from e
    if not any(map(os.environ.get, SERVERS)):
        said = "trackio: neither %s nor %s is set: written on this machine, sent to nobody"
        log.warning(said, *SERVERS)
    with redirect_stdout(sys.stderr):  # it prints where results of commands go
        run = library.init(
            PROJECT,
            name=f"{folder.resolve().name}-{lines.identity(folder)}",
            config=lines.settings(config),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
    first = run._next_step

    def write(version: int, numbers: dict[str, float]) -> None:
        if version >= first:
            run.log(numbers, step=version)

    def end(finished: bool) -> None:
        with redirect_stdout(sys.stderr):
            run.finish()

    return lines.follow("trackio", folder, config, write, end)
