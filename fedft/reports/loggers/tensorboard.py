"""TensorBoard events of a run."""

from pathlib import Path
from typing import Any


def write_events(folder: Path, lines: list[dict[str, Any]]) -> None:
    """TensorBoard events, written once from the metrics so that a resumed run has each point once."""
    from torch.utils.tensorboard import SummaryWriter

    events = folder / "events"
    for old in events.glob("*tfevents*"):
        old.unlink()
    with SummaryWriter(str(events)) as writer:
        for line in lines:
            for name in ("loss", "accuracy", "rouge_l", "train_loss", "bytes_up", "bytes_down"):
                if name in line:
                    writer.add_scalar(name, line[name], line["version"])
