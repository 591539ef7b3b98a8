"""A logger: held-out loss and bytes of every state as a line of `log.csv` in the run folder."""

import csv
import json


def csv_log(folder, config):
    """Begins with the lines that a resumed run has already; hears each new one."""
    file = folder / "log.csv"
    before = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in before.read_text().splitlines()] if before.exists() else []

    def write():
        with open(file, "w", encoding="utf-8", newline="") as f:
            table = csv.DictWriter(f, ["version", "loss", "bytes_up", "bytes_down"], extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)

    def observe(kind, info):
        """A line of metrics.jsonl, and then all of them to the file."""
        if kind == "line":
            rows.append(info)
            write()

    write()
    return observe
