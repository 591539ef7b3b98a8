"""Contract suites, one file per kind of plug-in: what the rest of fedft relies on, checked on something small. For the
tests of a package that brings one; `fedft.testing` has the strategies'.
"""
