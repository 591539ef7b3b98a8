"""From files of records to batches of token ids.

In this room: reading records (`records`, `record_files`, `source_paths`), cutting them into clients and held-out rows
(`partition`), templates (`templates`, `template_checks`), labels (`labels`), what is learned of a record (`examples`),
conversations (`conversations`, `chat`), pairs of answers (`preferences`), two sides (`encoder_decoder`), tokens
(`token_columns`), text that is a control token (`control_tokens`), batches (`batches`, `packing`), and everything that
one client or site needs of these (`client_datasets`).
No model is loaded here; the rows of the built-in task are made in `fedft.quickstart`.
"""
