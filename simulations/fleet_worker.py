"""A worker of a simulation's fleet: `python -m fedft.simulations.fleet_worker NUMBER`, see `fedft.carriers.fleet`.

It is told a run and whose clients it has, and loads the base model once and the rows of these clients alone. What
clients keep for themselves it writes into the run's folder, as one process would.
"""

import logging
import platform
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedft import allowed_code, run_file
from fedft.carriers.fleet import worker
from fedft.carriers.interface import Post
from fedft.errors import ConfigError


def begin(told: Mapping[str, Any]) -> tuple[Post, dict[str, Any]]:
    """(the post of a worker's clients; digests of its base model and rows, and how many clients share a pass).

    `told` has the run's `config`, the worker's `device` and `clients`, a file that must be there (`mark`), and what
    code it may import (`allow`). Raises ConfigError where the run's folder is not the one that the file was written in.
    """
    from fedft.simulations import fleet, workplace

    if not (mark := Path(told["mark"])).exists():
        raise ConfigError(f"{mark.parent} on {platform.node()} is not the run's folder; --out has to be a shared one")
    allowed_code.allow([told["allow"]])
    config = run_file.from_dict(told["config"])
    config = replace(config, model=replace(config.model, device=told["device"]))
    # what is to say of models and rows the process says that has them all
    logging.disable(logging.WARNING)
    try:
        place = workplace.workplace(config, folder=mark.parent, only=told["clients"])
    finally:
        logging.disable(logging.NOTSET)
    post = workplace.local_post(place.clients)
    facts = {"base": place.base.digest, "rows": fleet.rows_digest(place.clients), "together": post.together}
    return post, facts


if __name__ == "__main__":
    worker.serve(sys.argv[1], begin)
