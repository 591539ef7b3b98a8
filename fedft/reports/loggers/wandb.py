"""A run of Weights & Biases: the numbers of `lines` by version, and the run file as its config.

Nobody is contacted unless WANDB_MODE says "online": without it the run is written to wandb/ of the run's folder, from
where `wandb sync` sends it. Of the machine nothing is written, no code, no console; reports of wandb's own errors are
off unless WANDB_ERROR_REPORTING says otherwise. WANDB_PROJECT, WANDB_ENTITY and the like hold as its library says.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

from fedft.config import RunConfig
from fedft.reports.loggers import lines
from fedft.reports.observers import Observer

log = logging.getLogger(__name__)

MODE = "WANDB_MODE"
_begun: dict[str, Any] = {}
"""Runs of this process that have not ended, by their id: wandb has but one of an id at a time."""


def wandb(folder: Path, config: RunConfig) -> Observer:
    """Offline a resumed run is written anew; online it goes on behind the last version that the server has."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb as library
    except ImportError as e:
        raise ImportError(f"{e}; pip install 'fedft[wandb]' brings it") from e
    mode = os.environ.get(MODE)
    if mode is None:
        mode = "offline"
        log.warning(
            "wandb: %s is not set: written to %s, sent to nobody; `wandb sync` sends it", MODE, folder / "wandb"
        )
    own = lines.identity(folder)
    if own in _begun:
        _begun.pop(own).finish()
    if mode == "offline":
        for old in (folder / "wandb").glob("offline-run-*"):
            shutil.rmtree(old)
    run = _begun[own] = library.init(
        project=os.environ.get("WANDB_PROJECT", "fedft"),
        name=folder.resolve().name,
        id=own,
        dir=str(folder),
        config=lines.settings(config),
        resume="allow" if mode == "online" else None,
        reinit="create_new",  # several runs of one process
        mode=mode,
        settings=library.Settings(
            silent=True,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    first = run.starting_step

    def write(version: int, numbers: dict[str, float]) -> None:
        if version >= first:
            run.log(numbers, step=version, commit=True)

    def end(finished: bool) -> None:
        _begun.pop(own, None)
        run.finish(exit_code=0 if finished else 1)

    return lines.follow("wandb", folder, config, write, end)
