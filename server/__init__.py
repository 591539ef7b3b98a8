"""The server's side of a run: rounds, whom to ask, what to admit, durable state."""
