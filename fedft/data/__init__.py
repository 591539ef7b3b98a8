"""From files of records to batches of token ids.

In this room: reading records (`records`), cutting them into clients and held-out rows (`partition`), templates and
labels (`examples`, `template_checks`), the two sides of an encoder-decoder (`encoder_decoder`), conversations
(`conversations`, `chat`), tokens (`token_columns`), batches (`batches`), and everything that one client or site needs
of these (`client_datasets`). No model is loaded here; the rows of the built-in task are made in `fedft.quickstart`.
"""
