"""Many clients on one machine, races of methods, and the run files that are shipped: ours, and in `papers/` those of papers."""
