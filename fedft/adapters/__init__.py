"""Kinds of adapters (`fedft.contract.Kind`), one file each: what is trained in a model, and how it changes a weight.

In this room: low-rank pairs (`lora`, and their layer for several clients, `lora_batched`) and all parameters (`full`).
How a model is held and written is in `fedft.models`, how low-rank products are added in `fedft.arithmetic.lowrank`.
"""
