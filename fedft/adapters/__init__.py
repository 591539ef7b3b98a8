"""Kinds of what is trained and exchanged, one file each: low-rank pairs, all parameters."""
