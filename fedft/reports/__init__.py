"""What a person sees of a run: terminal, metrics.jsonl, tables, plots, pages, loggers."""
