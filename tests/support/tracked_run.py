"""`python tracked_run.py FOLDER NAME...`: a short run is told to these loggers, in a process of its own."""

import sys
from pathlib import Path

from fedft import run_file
from fedft.reports.loggers import interface
from fedft.reports.observers import Audience
from fedft.suites.loggers import line

folder, names = Path(sys.argv[1]), sys.argv[2:]
audience = Audience()
interface.begin(audience, folder, run_file.from_dict({"server": {"loggers": names}}))
for version in range(3):
    audience("line", line(version))
audience("ended", {"folder": folder, "summary": {}})
