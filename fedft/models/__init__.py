"""The resident base model: loading, what of it can be trained, the handle that strategies work on, export.

Kinds of adapters are in `fedft.adapters`, steps of training in `fedft.training`.
"""
