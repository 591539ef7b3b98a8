"""Arithmetic on named tensors, low-rank pairs and sparse vectors, and which compiled library does it.

No model, no message and no strategy is known here.
"""
