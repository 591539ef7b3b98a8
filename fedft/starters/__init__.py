"""Plug-ins to begin with, one for each kind that `fedft new` writes: each keeps its contract, to be changed from there.

Their files are copied with another name in place of "example"; nothing in fedft uses them.
"""
