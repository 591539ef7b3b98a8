"""TensorBoard events of a run, in its folder events/: every metric, the clients' own loss, and bytes, by version."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from fedft.config import RunConfig
from fedft.reports import columns, metric_log
from fedft.reports.observers import Observer


def tensorboard(folder: Path, config: RunConfig) -> Observer:
    """Writes the lines that are in `folder` already, then each new one: a resumed run has each point once."""
    events = folder / "events"
    for old in events.glob("*tfevents*"):
        old.unlink()
    writer = SummaryWriter(str(events))

    def observe(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "line":
            for name in (*columns.measured(info), *metric_log.FACTS):
                if info.get(name) is not None:
                    writer.add_scalar(name, info[name], info["version"])
            writer.flush()
        elif kind == "ended":
            writer.close()

    for line in metric_log.read(folder / "metrics.jsonl"):
        observe("line", line)
    return observe
