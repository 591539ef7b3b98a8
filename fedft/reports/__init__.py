"""How the numbers of a run are kept and shown: terminal, metrics.jsonl, tables, plots, HTML pages, loggers.

In this room: how a metric is shown (`columns`), the lines of a run (`metric_log`), what one run came to (`run_result`),
methods side by side (`comparison`, from finished folders `finished_runs`), and what draws them. Metrics are computed in
`fedft.training.metrics`, comparisons run by `fedft.simulations.race`.
"""
