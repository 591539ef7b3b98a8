"""What the server makes of the updates of a round: means over clients, and optimisers for which a mean is a gradient."""
