"""States that only grow: each round adds its tensors, and none changes or goes.

    rounds          the tensors of such a state in memory: what a round adds costs the same however many there were
    history_file    the same on disk, in one file that is only added to

Which strategies have such states, and what they mean, is known in `fedft.strategies.parts.growing_history`.
"""
