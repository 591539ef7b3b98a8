"""Arithmetic on named tensors, low-rank pairs and sparse vectors, and which compiled library does it. Knows no model,
no
message and no strategy.
"""
