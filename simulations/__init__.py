"""Many clients on one machine, races of methods, and the run files that are shipped; `papers/` has those of papers."""
