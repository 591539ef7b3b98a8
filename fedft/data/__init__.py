"""From files of records to batches of token ids.

In this room: reading records (`records`), cutting them into clients and held-out rows (`partition`), templates, labels
and batches (`examples`), and the three in turn for one client or site (`client_datasets`). No model is loaded here; the
built-in task's rows are made in `fedft.quickstart`.
"""
