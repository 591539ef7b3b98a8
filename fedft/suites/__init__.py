"""Contract suites: what the engine relies on in every strategy, adapter kind, codec, objective and so on.

Each is a table of checks that anybody can run on a value of their own (`fedft check KIND NAME`); `toy.py` is the model
and the clients that most of them run on. What an algorithm
computes is for its own tests.
"""
