"""TensorBoard events of a run in its folder events/: the numbers of `lines` by version, and the run file as hparams."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from fedft.config import RunConfig
from fedft.reports.loggers import lines
from fedft.reports.observers import Observer
from fedft.training.metrics.loss import ACCURACY, LOSS


def tensorboard(folder: Path, config: RunConfig) -> Observer:
    """Writes the lines that are in `folder` already, then each new one: a resumed run has each point once."""
    events = folder / "events"
    for old in events.glob("*tfevents*"):
        old.unlink()
    writer = SummaryWriter(str(events))
    file: Any = writer.file_writer
    # which numbers its table shows beside the hyper-parameters; the values are those of the curves
    *begun, over = hparams(lines.settings(config), {LOSS.name: 0.0, ACCURACY.name: 0.0})
    for summary in begun:
        file.add_summary(summary)
    writer.flush()

    def write(version: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, version)
        writer.flush()

    def end(finished: bool) -> None:
        file.add_summary(over)
        writer.close()

    return lines.follow("tensorboard", folder, config, write, end)
