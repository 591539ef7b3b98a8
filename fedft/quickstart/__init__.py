"""A first run without downloads: a small base model and a task, both made of Python's own standard library.

In this room: the base model and its cache (`base`), its training (`pretraining`), and the task's rows (`rows`). The run
file that uses them is `simulations/quickstart.toml`.
"""

BASE = "stdlib-base"
"""What `[model] id` calls the base (`base.py`)."""
ROWS = "stdlib-docstrings"
"""What `[data] train` calls the rows (`rows.py`)."""
