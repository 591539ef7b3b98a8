"""Planners: who does how much in a round, for any strategy whose clients may differ in it. One rule, one file.

(state, roster) -> {client: Work}        pure: draws are Philox's, of the run's seed, the client and the round
"""
