"""The built-in base model and its rows, made on the spot from Python's own documentation."""
