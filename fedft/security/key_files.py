"""Files of keys: read within a bound, written once, with the rights they need."""

import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedft import durable
from fedft.errors import ConfigError, RunPaused

MAX_FILE_BYTES = 2**22  # a roster of some 10,000 sites

PRIVATE, PUBLIC = 0o600, 0o644


def check_absent(folder: Path, files: Sequence[str], why: str) -> None:
    """Make `folder`, mode 0700, unless it is there; raise ConfigError if it holds any of `files` already.

    `why` ends the message: what to do instead. A folder that cannot be made is a ConfigError, too.
    """
    if found := [name for name in files if os.path.lexists(folder / name)]:
        raise ConfigError(f"{folder}: {', '.join(found)} there already, and no key is overwritten; {why}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{folder}: cannot be made ({e.strerror})") from e


def write_new(path: Path, body: bytes, mode: int) -> None:
    """Write `body` to `path` durably, whole or not at all, with permission bits `mode` from its first byte on.

    Raises ConfigError with the disk's reason.
    """
    try:
        durable.write(path, body, mode=mode)
    except RunPaused as e:
        reason = e.__cause__.strerror if isinstance(e.__cause__, OSError) else e
        raise ConfigError(f"{path}: cannot be written ({reason})") from e


def read_text(path: Path, remedy: str, most: int = MAX_FILE_BYTES) -> str:
    """The UTF-8 text of the file `path`.

    Raises ConfigError if the file is absent or longer than `most` bytes, both ending in `remedy`, or is not readable
    text; no more than `most` + 1 bytes are read.
    """
    try:
        with open(path, "rb") as f:
            data = f.read(most + 1)
        text = data.decode()
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: no such file; {remedy}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from e
    if len(data) > most:
        raise ConfigError(f"{path}: more than {most} bytes; {remedy}")
    return text


def tables_of(text: str, path: Path) -> dict[str, Any]:
    """What a text of TOML says. Raises ConfigError, which names the file `path`, for what is none."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as e:  # a date that is none is a plain ValueError
        raise ConfigError(f"{path}: not valid TOML: {' '.join(str(e).split())[:200]}") from e
