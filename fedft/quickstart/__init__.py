"""The built-in base model and its rows, made on the spot from Python's own documentation."""

BASE = "stdlib-base"
"""What `[model] id` calls the base (`base.py`)."""
ROWS = "stdlib-docstrings"
"""What `[data] train` calls the rows (`rows.py`)."""
