"""What a logger is, and the look-up of those that a run file names.

    [server]
    loggers = ["tensorboard", "my_package.loggers:csv"]

A logger is a factory `(folder, config) -> Observer`. It is called once the run's folder is there and `metrics.jsonl`
in it holds the lines of a run that is resumed, and no others; its observer then hears "line" for every new line and
"ended" once, in whatever way this process's part of the run ends. So a logger that begins with the lines it finds
has each point once, however often a run was interrupted.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from fedft import registry
from fedft.config import RunConfig
from fedft.errors import ConfigError, in_one_line
from fedft.reports.observers import Audience, Observer

Logger = Callable[[Path, RunConfig], Observer]


def chosen(names: Iterable[str]) -> dict[str, Logger]:
    """The loggers of these names, imported and not yet begun.

    Raises ConfigError in one line: no such logger, or it cannot be imported (its library is not installed).
    """
    found = {name: registry.loggers.load(name) for name in dict.fromkeys(names)}
    for name, logger in found.items():
        if not callable(logger):
            raise ConfigError(f"logger {name!r} is a {type(logger).__name__}, wanted (folder, config) -> observer")
    return found


def begin(audience: Audience, folder: Path, config: RunConfig) -> None:
    """Let the loggers of `config` listen; `metrics.jsonl` in `folder` is cut to what is committed.

    Raises ConfigError: a logger that cannot begin.
    """
    for name, logger in chosen(config.server.loggers).items():
        try:
            observer = logger(folder, config)
        except Exception as e:  # another package's code
            raise ConfigError(f"[server] loggers: {name!r} cannot begin: {in_one_line(e)}") from e
        if not callable(observer):
            raise ConfigError(f"[server] loggers: {name!r} gave a {type(observer).__name__}, wanted an observer")
        audience.add(observer)
