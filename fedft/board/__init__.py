"""A run seen from outside: where it stands, on the terminal, as a page, as JSON and as Prometheus' text.

    live_file       the one thing that a run does for this room: it keeps `status.json` in its folder up to date
    run_status      what a run folder says, running or finished, from its files alone; line_sums: its metrics.jsonl
    counters        what of it only grows
    run_folders     a folder with many runs in it
    status_text     the same as lines for a terminal
    page            the same as an HTML page, with page_style and, for its figures, curve
    metrics_text    the same as Prometheus reads it; adapter_zip: the run's model/ while it is sent
    network_status  the status that a board elsewhere shows; status_form: whether what it sends is one
    pages           which path of a request is answered with what; listener: HTTP, its limits, Host and token

Nothing here writes into a run's folder but `live_file`, and nothing takes a lock there: a run is not disturbed.
"""
