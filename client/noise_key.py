"""The key of one client's noise in one run, from which all of its noise and who is in a batch follow.

    <folder>/privacy.key    SHA-256 of the rest, then KEY_BYTES; mode 0600

It is made once, is on the disk before it is used, and never travels: who has it subtracts the noise from what the
client has sent. One that is lost, or torn by a crash, is made anew: what follows from it is other noise, and charged as
such.
"""

import os
from pathlib import Path

from fedft import durable
from fedft.privacy.keyed_stream import KEY_BYTES, new_key
from fedft.security.private_keys import check_private

FILE = "privacy.key"


def of_run(folder: Path) -> bytes:
    """KEY_BYTES from the operating system, durable in `folder`: the same ones at each call while the file is there.

    Raises KeyFault where others may read the file, RunPaused where the disk does not take it.
    """
    path = folder / FILE
    if path.exists() and hasattr(os, "geteuid"):
        check_private(path, path.stat())
    kept = durable.verified(path)
    if kept is not None and len(kept) == KEY_BYTES:
        return kept
    key = new_key()
    durable.commit(path, key)
    return key
