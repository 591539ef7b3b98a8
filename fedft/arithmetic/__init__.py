"""Arithmetic on named tensors and low-rank pairs, and which compiled library does it.

No model, no message and no strategy is known here.
"""
