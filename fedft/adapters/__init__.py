"""Kinds of adapters (`fedft.contract.Kind`), one file each: what is trained in a model, and how it changes a weight.

In this room: low-rank pairs (`lora`; their layer for several clients, `lora_batched`; on experts that lie in one
parameter, `lora_experts`), triplets that are scored (`triplet`) and all parameters (`full`).
How a model is held and written is in `fedft.models`, how low-rank products are added in `fedft.arithmetic.lowrank`.
"""
