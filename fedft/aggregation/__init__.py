"""What the server makes of the updates of a round: means over clients, weights and medians that a few
dishonest ones cannot move (`robust_weights`, `entrywise`), and optimisers that take changes as gradients.
"""
